"""Checkpoints on the shelf: whole or not at all, only the newest, only under a good fence."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_store.errors import InvalidRequest, StoreCorrupt
from tests.training.house import House, house
from training.checkpoints import CheckpointRecord
from training.jobs import Lease, LeaseLost


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "data", lease_s=60.0) as opened:
        yield opened


@pytest.fixture
def lease(home: House) -> Lease:
    home.job()
    found = home.place.queue.claim("worker-1")
    assert found is not None
    return found


def filled(folder: Path, text: str) -> Path:
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "weights").write_text(text)
    (folder / "state.json").write_text("{}")
    return folder


def stored(home: House) -> list[Path]:
    folder = home.store.blob_root / "objects" / "checkpoints"
    return sorted(folder.iterdir()) if folder.exists() else []


def listed(home: House, lease: Lease) -> tuple[CheckpointRecord, ...]:
    return home.place.shelf.list(lease.job.id, limit=100)[0]


def test_the_newest_comes_back_as_it_was(home: House, lease: Lease, tmp_path: Path) -> None:
    shelf = home.place.shelf
    assert shelf.restore(lease.job.id, tmp_path / "none") is None
    for step in (5, 10):
        folder = filled(tmp_path / f"at-{step}", f"weights of {step}")
        shelf.save(lease, folder, step=step, metrics={"loss": 1.0 / step})
    assert shelf.restore(lease.job.id, tmp_path / "back") == 10
    assert (tmp_path / "back" / "deeper" / "weights").read_text() == "weights of 10"
    assert (tmp_path / "back" / "state.json").read_text() == "{}"
    assert [(one.step, one.sha256 is None) for one in listed(home, lease)] == [
        (10, False),
        (5, True),
    ]
    assert len(stored(home)) == 1


def test_steps_that_are_done_again_replace_those_lost(
    home: House, lease: Lease, tmp_path: Path
) -> None:
    for number, step in enumerate((5, 10, 10, 6)):
        folder = filled(tmp_path / str(number), str(number))
        home.place.shelf.save(lease, folder, step=step, metrics={})
    assert [one.step for one in listed(home, lease)] == [6, 5]
    assert home.place.shelf.restore(lease.job.id, tmp_path / "back") == 6


def test_a_late_workers_checkpoint_is_none(home: House, lease: Lease, tmp_path: Path) -> None:
    shelf = home.place.shelf
    shelf.save(lease, filled(tmp_path / "a", "good"), step=5, metrics={})
    late = Lease(lease.job, lease.fence - 1)
    with pytest.raises(LeaseLost):
        shelf.save(late, filled(tmp_path / "b", "late"), step=9, metrics={})
    assert [one.step for one in listed(home, lease)] == [5]
    assert len(stored(home)) == 1
    shelf.restore(lease.job.id, tmp_path / "back")
    assert (tmp_path / "back" / "deeper" / "weights").read_text() == "good"


def test_a_damaged_one_is_not_gone_on_from(home: House, lease: Lease, tmp_path: Path) -> None:
    home.place.shelf.save(lease, filled(tmp_path / "a", "good"), step=5, metrics={})
    (only,) = stored(home)
    only.write_bytes(only.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(StoreCorrupt, match="is damaged"):
        home.place.shelf.restore(lease.job.id, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    only.unlink()
    with pytest.raises(StoreCorrupt, match="not in the store"):
        home.place.shelf.restore(lease.job.id, tmp_path / "back")


def test_progress_forgives_failures(home: House, lease: Lease, tmp_path: Path) -> None:
    home.place.queue.fail(lease, "a hiccup")
    again = home.place.queue.claim("worker-2")
    assert again is not None
    assert again.job.failures == 1
    home.place.shelf.save(again, filled(tmp_path / "a", "x"), step=5, metrics={})
    assert home.book.get(lease.job.id).failures == 0


def test_bytes_of_ended_jobs_go(home: House, lease: Lease, tmp_path: Path) -> None:
    home.place.shelf.save(lease, filled(tmp_path / "a", "x"), step=5, metrics={})
    home.place.shelf.discard_ended()
    assert len(stored(home)) == 1
    home.place.queue.fail(lease, "over", final=True)
    home.place.shelf.discard_ended()
    assert stored(home) == []
    assert home.place.shelf.restore(lease.job.id, tmp_path / "back") is None
    assert [one.step for one in listed(home, lease)] == [5]


def test_pages(home: House, lease: Lease, tmp_path: Path) -> None:
    for step in range(1, 6):
        folder = filled(tmp_path / str(step), "x")
        home.place.shelf.save(lease, folder, step=step, metrics={})
    shelf, job_id = home.place.shelf, lease.job.id
    first, more = shelf.list(job_id, limit=2)
    assert ([one.step for one in first], more) == ([5, 4], True)
    last, more = shelf.list(job_id, limit=3, after=first[-1].id)
    assert ([one.step for one in last], more) == ([3, 2, 1], False)
    with pytest.raises(InvalidRequest):
        shelf.list(job_id, limit=2, after="ftckpt-0")
