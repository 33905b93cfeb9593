import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapters_store.blobs import FolderBlobs, OwnedBlobs
from adapters_store.errors import AdapterNotFound, StoreCorrupt, Unavailable
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME
from tests.adapters_store.builders import put
from tests.adapters_store.homes import Objects, reader_elsewhere

# What both kinds of place promise is tested on both; `in_a_folder` is for what only one of them is.
in_a_folder = pytest.mark.parametrize("place", ["folder"], indirect=True)


def staged(root: Path) -> list[Path]:
    return list((root / "tmp").glob("*/*"))


def test_a_reader_elsewhere_sees_what_was_put(blobs, place):
    digest = put(blobs)
    content = reader_elsewhere(place).read(digest)
    assert content.digest == digest
    assert content.config["r"] == 4
    assert {name: float(t.float().mean()) for name, t in content.tensors.items()} == {
        "layers.0.q_proj.lora_A.weight": 1.0,
        "layers.0.q_proj.lora_B.weight": 1.0,
    }
    blobs.delete(digest)
    with pytest.raises(AdapterNotFound):
        reader_elsewhere(place).read(digest)
    assert float(content.tensors["layers.0.q_proj.lora_A.weight"].sum()) == 32.0  # still mapped


def test_a_reader_writes_nothing(tmp_path):
    with pytest.raises(AdapterNotFound):
        FolderBlobs(tmp_path / "nowhere").read("0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "../" * 22, "0" * 64 + "\n", "É" * 64])
def test_what_is_no_digest_is_not_found(blobs, place, digest):
    for ask in (blobs.verified, reader_elsewhere(place).read):
        with pytest.raises(AdapterNotFound):
            ask(digest)


@in_a_folder
def test_putting_again_changes_nothing(blobs, tmp_path):
    digest = put(blobs)
    config = tmp_path / "store" / "sha256" / digest[:2] / digest / CONFIG_NAME
    before = config.stat()
    assert put(blobs) == digest
    assert config.stat().st_ino == before.st_ino
    assert staged(tmp_path / "store") == []


def test_putting_again_mends_a_damaged_version(blobs, place):
    digest = put(blobs)
    objects = Objects(place)
    objects.write(digest, WEIGHTS_NAME, objects.read(digest, WEIGHTS_NAME)[:-1] + b"\xff")
    with pytest.raises(StoreCorrupt, match="digest"):
        reader_elsewhere(place).read(digest)
    objects.remove(digest, WEIGHTS_NAME)
    with pytest.raises(StoreCorrupt, match="lacks a file"):
        reader_elsewhere(place).read(digest)
    assert put(blobs) == digest
    assert reader_elsewhere(place).read(digest).digest == digest
    assert staged(place.local) == []


def test_a_version_under_another_digest_is_corrupt(blobs, place):
    one, two = put(blobs, 1.0), put(blobs, 2.0)
    objects = Objects(place)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        objects.write(two, name, objects.read(one, name))
    with pytest.raises(StoreCorrupt):
        reader_elsewhere(place).read(two)


def test_deleting_twice_is_no_fault(blobs, place):
    digest = put(blobs)
    blobs.delete(digest)
    blobs.delete(digest)
    with pytest.raises(AdapterNotFound):
        blobs.verified(digest)
    assert Objects(place).digests() == set()


def test_a_place_that_answers_can_be_probed(blobs, place):
    blobs.probe()
    if place.folder is not None:
        shutil.rmtree(place.folder)
        with pytest.raises(Unavailable, match=str(place.folder)):
            blobs.probe()


def test_staging_is_removed_whatever_happens(blobs, place):
    def fail() -> None:
        with blobs.staging() as staging:
            (staging / "file").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert staged(place.local) == []


@in_a_folder
def test_a_dead_process_leftovers_are_swept_and_a_living_ones_kept(blobs, tmp_path):
    root = tmp_path / "store"
    script = (
        "import os, signal, sys, pathlib\n"
        "from adapters_store.blobs import OwnedBlobs\n"
        "with OwnedBlobs(pathlib.Path(sys.argv[1])).staging() as staging:\n"
        "    (staging / 'half').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert [path.name for path in (root / "tmp").glob("*/*/*")] == ["half"]
    with blobs.staging() as mine:
        OwnedBlobs(root).close()
        assert mine.exists()
        assert staged(root) == [mine]


@in_a_folder
def test_readers_see_a_version_whole_or_not_at_all(blobs, tmp_path):
    """While one thread puts and deletes it, over and over."""
    digest = put(blobs)
    stop = threading.Event()
    faults: list[BaseException] = []
    seen = {"there": 0, "gone": 0}

    def look() -> None:
        reader = FolderBlobs(tmp_path / "store")
        while not stop.is_set():
            try:
                reader.read(digest)
                seen["there"] += 1
            except AdapterNotFound:
                seen["gone"] += 1
            except BaseException as fault:
                faults.append(fault)
                return

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(120):
        blobs.delete(digest)
        put(blobs)
    stop.set()
    thread.join()
    assert faults == []
    assert seen["there"] > 0
