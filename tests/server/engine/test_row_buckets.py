"""Few sizes, little padding."""

from server.engine.row_buckets import rows_for


def test_buckets_hold_what_they_are_for_and_are_few() -> None:
    sizes = [rows_for(count) for count in range(1, 513)]
    assert all(size >= count for count, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert all(rows_for(size) == size for size in sizes)
    assert len(set(sizes)) < 32
    assert all(size <= count * 5 / 4 for count, size in enumerate(sizes, 1) if count > 32)
    assert rows_for(0) == 0
    assert rows_for(5000) == 5056
