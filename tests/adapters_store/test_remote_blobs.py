import shutil
import threading
from dataclasses import replace

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save

from adapters_store.blob_place import BlobPlace
from adapters_store.errors import AdapterNotFound, StoreCorrupt, Unavailable
from adapters_store.package import CONFIG_NAME, WEIGHTS_NAME, write_package
from adapters_store.remote_blobs import STORE_NAME
from adapters_store.remote_place import CHUNK_BYTES
from tests.adapters_store.builders import folder, put
from tests.adapters_store.homes import Objects, elsewhere, reader_elsewhere
from tests.support.door import Door
from tests.support.servers import s3_environment


@pytest.fixture
def place(remote_place):
    return remote_place


@pytest.fixture
def door(s3, monkeypatch):
    """Between every client made from now on and the S3."""
    with Door(s3.port) as made:
        for name, value in s3_environment(made.port).items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_half_written_version_is_absent(blobs, place):
    """As the store is when a process died between the two uploads, or the two removals."""
    digest = put(blobs)
    objects = Objects(place)
    config = objects.read(digest, CONFIG_NAME)
    objects.remove(digest, CONFIG_NAME)
    with pytest.raises(AdapterNotFound):
        reader_elsewhere(place).read(digest)
    objects.write(digest, CONFIG_NAME, config)
    assert reader_elsewhere(place).read(digest).digest == digest


def test_the_weights_are_up_before_the_config_and_gone_after_it(blobs, place):
    seen: list[tuple[str, str]] = []
    filesystem = blobs._place.filesystem

    def noting(what, call):
        def noted(*args, **kwargs):
            call(*args, **kwargs)
            seen.append((what, str(args[-1]).rpartition("/")[2]))

        return noted

    filesystem.put_file = noting("put", filesystem.put_file)
    filesystem.rm_file = noting("removed", filesystem.rm_file)
    blobs.delete(put(blobs))
    assert seen == [
        ("put", WEIGHTS_NAME),
        ("put", CONFIG_NAME),
        ("removed", CONFIG_NAME),
        ("removed", WEIGHTS_NAME),
    ]


def test_what_another_replica_puts_is_there_at_once(blobs, place):
    """Also for a reader that looked before: nothing remembers a listing."""
    digest = put(blobs)
    reader = reader_elsewhere(place)
    blobs.delete(digest)
    with pytest.raises(AdapterNotFound):
        reader.read(digest)
    put(blobs)
    assert reader.read(digest).digest == digest


def test_an_adapter_of_many_parts_comes_back_whole(blobs, place, tmp_path):
    tensor = torch.arange(CHUNK_BYTES // 4 * 3, dtype=torch.float32)  # three chunks
    (tmp_path / "weights").write_bytes(save({"a": tensor}))
    with blobs.staging() as staging:
        package = staging / "package"
        digest = write_package(folder()[CONFIG_NAME], tmp_path / "weights", package)
        blobs.put(digest, package)
    assert reader_elsewhere(place).read(digest).tensors["a"].equal(tensor)


def test_while_the_store_is_away_copies_are_read_and_the_rest_is_unavailable(door, place):
    blobs = place.open()
    mine, others = put(blobs, 1.0), put(blobs, 2.0)
    reader = reader_elsewhere(place)
    reader.read(mine)
    door.shut()
    assert reader.read(mine).digest == mine
    assert blobs.verified(others).is_dir()
    for refused in (
        lambda: reader.read(others),
        lambda: put(blobs, 3.0),
        lambda: blobs.probe(),
        lambda: place.open(),
    ):
        with pytest.raises(Unavailable) as away:
            refused()
        assert place.url in away.value.message
        assert "secret" not in away.value.message
    blobs.delete(mine)  # its files stay until somebody puts and deletes it again
    door.open()
    assert reader.read(others).digest == others
    blobs.probe()
    assert Objects(place).digests() == {mine, others}
    blobs.close()


def test_a_bucket_that_is_gone_is_no_missing_adapter(blobs, place):
    digest = put(blobs)
    objects = Objects(place)
    bucket = place.url.removeprefix("s3://").partition("/")[0]
    objects.filesystem.rm(bucket, recursive=True)
    for refused in (
        lambda: reader_elsewhere(place).read(digest),
        lambda: put(blobs, 2.0),
        lambda: blobs.probe(),
        lambda: elsewhere(place).open(),
    ):
        with pytest.raises(Unavailable, match="s3://"):
            refused()


def test_opening_marks_the_place_once_and_a_reader_asks_nothing(place, door):
    place.open().close()
    objects = Objects(place)
    marker = f"{place.url}/{STORE_NAME}"
    before = objects.filesystem.info(marker)["LastModified"]
    elsewhere(place).open().close()
    assert objects.filesystem.info(marker)["LastModified"] == before
    door.shut()
    elsewhere(place).reader()  # as an engine does that starts while the store is away


@pytest.mark.parametrize(
    ("url", "says"),
    [("nosuch://bucket", "nosuch"), ("gs://bucket", "gcsfs"), ("nosuch://me:secret@host", "me:")],
)
def test_a_url_that_nothing_installed_takes_is_told_without_its_password(tmp_path, url, says):
    with pytest.raises(ValueError, match=says) as refused:
        BlobPlace(url, str(tmp_path / "cache")).open()
    assert "secret" not in str(refused.value)
    assert list((tmp_path / "cache" / "tmp").glob("*/")) == []


class SpoilingFileSystem(MemoryFileSystem):
    """Spoils so many of the next downloads, as a broken connection might."""

    protocol = "spoiling"
    left = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("spoiling:"))

    def get_file(self, rpath, lpath=None, *args, **kwargs):
        super().get_file(rpath, lpath, *args, **kwargs)
        if type(self).left and rpath.endswith(WEIGHTS_NAME):
            type(self).left -= 1
            with open(lpath, "r+b") as file:
                file.seek(-1, 2)
                file.write(b"\xff")


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_a_spoilt_download_is_fetched_once_more_and_never_served(tmp_path, spoilt):
    fsspec.register_implementation("spoiling", SpoilingFileSystem, clobber=True)
    place = BlobPlace(f"spoiling://{tmp_path.name}", str(tmp_path / "cache"))
    blobs = place.open()
    digest = put(blobs)
    SpoilingFileSystem.left = spoilt
    reader = reader_elsewhere(place)
    if spoilt < 2:
        assert reader.read(digest).digest == digest
    else:
        with pytest.raises(StoreCorrupt):
            reader.read(digest)
        assert reader.read(digest).digest == digest  # nothing of it was kept
    assert SpoilingFileSystem.left == 0
    blobs.close()


class HangingFileSystem(MemoryFileSystem):
    """Fails every download; does not answer a probe before it is told to."""

    protocol = "hanging"
    asked = threading.Event()
    answer = threading.Event()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("hanging:"))

    def get_file(self, rpath, lpath=None, *args, **kwargs):
        raise ConnectionError("no route to it")

    def info(self, path, **kwargs):
        if path.endswith(STORE_NAME) and threading.current_thread() is not threading.main_thread():
            self.asked.set()
            assert self.answer.wait(30)
        return super().info(path, **kwargs)


def test_one_thread_waits_for_a_store_that_does_not_answer_and_no_other(tmp_path):
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    place = BlobPlace(f"hanging://{tmp_path.name}", str(tmp_path / "cache"))
    blobs = place.open()
    copied, digest = put(blobs, 1.0), "0" * 64
    with pytest.raises(Unavailable, match="no route"):
        blobs.verified(digest)
    faults: list[BaseException] = []

    def wait_for_it() -> None:
        try:
            blobs.verified(digest)
        except Unavailable as fault:
            faults.append(fault)

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    assert HangingFileSystem.asked.wait(30)
    with pytest.raises(Unavailable, match="no route"):
        blobs.verified(digest)  # at once: were it to ask, it would wait behind the other
    assert blobs.verified(copied).is_dir()
    HangingFileSystem.answer.set()
    waiting.join()
    assert len(faults) == 1
    blobs.close()


def test_a_damaged_copy_is_fetched_anew(blobs, place):
    digest = put(blobs)
    weights = place.local / "sha256" / digest[:2] / digest / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert blobs.verified(digest).is_dir()
    assert blobs.read(digest).digest == digest
    shutil.rmtree(place.local / "sha256")
    assert blobs.read(digest).digest == digest


def test_copies_are_bounded(place, blobs):
    digests = [put(blobs, float(number)) for number in range(4)]
    size = sum(file.stat().st_size for file in blobs.verified(digests[0]).iterdir())
    small = replace(elsewhere(place), cache_bytes=2 * size)
    reader = small.reader()
    for digest in digests:
        assert reader.read(digest).digest == digest
    assert {path.name for path in small.local.glob("sha256/*/*")} == set(digests[-2:])
