"""Uploaded files, in a folder with SQLite, and in an S3 with PostgreSQL."""

import io
from collections.abc import Iterator

import pytest

from adapters_store.errors import FileNotKept, InvalidRequest, StoreCorrupt, Unavailable
from adapters_store.files import FileRecord, _key
from adapters_store.store import AdapterStore
from tests.adapters_store.homes import Home


@pytest.fixture
def store(home: Home) -> Iterator[AdapterStore]:
    opened = home.open()
    yield opened
    opened.close()


def add(store: AdapterStore, content: bytes = b"{}\n", purpose: str = "fine-tune") -> FileRecord:
    return store.files.add(io.BytesIO(content), filename="data.jsonl", purpose=purpose)


def test_what_is_added_is_there_for_every_replica_and_after_a_restart(
    home: Home, store: AdapterStore
) -> None:
    content = bytes(range(256)) * 10_000
    record = add(store, content)
    assert (record.bytes, record.filename, record.purpose) == (2_560_000, "data.jsonl", "fine-tune")
    other = home.open_elsewhere()
    assert other.files.get(record.id) == record
    found, file = other.files.open(record.id)
    with file:
        assert (found, file.read()) == (record, content)
    other.close()


def test_what_is_deleted_is_gone_and_what_reads_it_reads_on(store: AdapterStore) -> None:
    record = add(store, b"x" * 1000)
    _, file = store.files.open(record.id)
    store.files.delete(record.id)
    with file:
        assert file.read() == b"x" * 1000
    for ask in (store.files.get, store.files.open, store.files.delete):
        with pytest.raises(FileNotKept, match=record.id):
            ask(record.id)
        with pytest.raises(FileNotKept):  # no text to PostgreSQL
            ask("file-\0")
    assert store.files.list(limit=10, order="asc") == ((), False)


def test_pages_by_age_go_both_ways_over_files_of_the_same_second(store: AdapterStore) -> None:
    ids = [add(store).id for _ in range(7)] + [add(store, purpose="batch").id]
    for order in ("asc", "desc"):
        seen: list[str] = []
        more, after = True, None
        while more:
            page, more = store.files.list(limit=3, after=after, purpose="fine-tune", order=order)
            seen += [record.id for record in page]
            after = seen[-1]
        assert sorted(seen) == sorted(ids[:7])
        assert seen == [
            r.id
            for r in sorted(
                store.files.list(limit=10, purpose="fine-tune", order="asc")[0],
                key=lambda r: (r.created_at, r.id),
                reverse=order == "desc",
            )
        ]
    assert [r.id for r in store.files.list(limit=9, purpose="batch", order="asc")[0]] == ids[7:]
    with pytest.raises(InvalidRequest) as refused:
        store.files.list(limit=3, after="file-none", order="asc")
    assert refused.value.param == "after"


def test_bytes_that_the_store_lost_are_no_mistake_of_the_caller(store: AdapterStore) -> None:
    record = add(store)
    store.files._objects.remove(_key(record.id))
    with pytest.raises(StoreCorrupt, match=record.id):
        store.files.open(record.id)
    store.files.delete(record.id)


def test_a_row_that_cannot_be_written_leaves_no_bytes(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[str] = []
    objects = store.files._objects
    keep = objects.put
    monkeypatch.setattr(objects, "put", lambda key, file: (put.append(key), keep(key, file)))

    def away(*_: object) -> None:
        raise Unavailable("the catalog is away")

    monkeypatch.setattr(store.files._database, "write", away)
    with pytest.raises(Unavailable):
        add(store)
    (key,) = put
    with pytest.raises(FileNotFoundError):
        objects.open(key)
