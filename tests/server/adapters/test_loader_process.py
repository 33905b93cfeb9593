"""The process that loads adapters: what it gives, how it stands back, how it ends."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from adapters_store.blob_place import BlobPlace
from adapters_store.blobs import FolderBlobs, OwnedBlobs
from adapters_store.content import BaseModel, LinearShape
from adapters_store.errors import AdapterNotFound, InvalidAdapter, StoreCorrupt, Unavailable
from adapters_store.package import WEIGHTS_NAME, write_package
from server.adapters.loader_process import LoaderProcess, sendable
from server.adapters.loading import LoadTarget, load
from server.adapters.slot_rows import SlotLimits
from tests.adapters_store import builders

pytestmark = pytest.mark.skipif(not sendable(), reason="needs Linux's memfd_create")

MODULE = "layers.0.q_proj"
TARGET = LoadTarget(
    BaseModel("base", "0" * 64, "LlamaForCausalLM", {MODULE: LinearShape(8, 6)}),
    SlotLimits(2, rows=16, row_bytes=1),
    torch.bfloat16,
)
SECONDS = 30  # for a process to start, or to end


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> BlobPlace:
    return BlobPlace(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def blobs(place: BlobPlace) -> Iterator[OwnedBlobs]:
    owned = OwnedBlobs(Path(place.url))
    yield owned
    owned.close()


@pytest.fixture(scope="module")
def loader(place: BlobPlace) -> Iterator[LoaderProcess]:
    one = LoaderProcess(place)
    yield one.open(TARGET)
    one.close()


@pytest.fixture
def fresh(place: BlobPlace) -> Iterator[LoaderProcess]:
    """One of the test's own, to be killed."""
    one = LoaderProcess(place)
    yield one.open(TARGET)
    one.close()


def put(blobs: OwnedBlobs, value: float, module: str = MODULE) -> str:
    """An adapter of rank 4 in the store; its digest."""
    stem = f"base_model.model.{module}"
    weights = {
        f"{stem}.lora_A.weight": torch.full((4, 8), value),
        f"{stem}.lora_B.weight": torch.arange(24.0).view(6, 4) * value,
    }
    config = b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}'
    with blobs.staging() as staging:
        (staging / "upload").write_bytes(builders.save(weights))
        digest = write_package(config, staging / "upload", staging / "package")
        blobs.put(digest, staging / "package")
    return digest


def process(loader: LoaderProcess) -> psutil.Process:
    return psutil.Process(loader._worker._process.pid)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_gives_what_a_thread_gives(
    loader: LoaderProcess, blobs: OwnedBlobs, place: BlobPlace
) -> None:
    digests = [put(blobs, value) for value in (1.0, 2.0, 3.0, 4.0)]
    futures = [loader.load(digest) for digest in digests]
    for digest, future in zip(digests, futures, strict=True):
        here = load(FolderBlobs(Path(place.url)), digest, TARGET)
        there = future.result(SECONDS)
        assert there.load_s > 0
        assert (there.digest, there.bytes) == (digest, here.bytes)
        assert (there.adapter.kind, there.adapter.rank) == ("lora", 4)
        for own, theirs in zip(
            here.adapter.layout[MODULE], there.adapter.layout[MODULE], strict=True
        ):
            torch.testing.assert_close(theirs, own, rtol=0, atol=0)


def test_a_load_that_fails_says_why_and_the_next_one_works(
    loader: LoaderProcess, blobs: OwnedBlobs, place: BlobPlace
) -> None:
    good, unfit, damaged = put(blobs, 5.0), put(blobs, 1.0, "layers.9.q_proj"), put(blobs, 6.0)
    weights = next(Path(place.url).glob(f"sha256/*/{damaged}/{WEIGHTS_NAME}"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(AdapterNotFound):
        loader.load("0" * 64).result(SECONDS)
    with pytest.raises(InvalidAdapter, match=r"layers\.9\.q_proj"):
        loader.load(unfit).result(SECONDS)
    with pytest.raises(StoreCorrupt, match="digest"):
        loader.load(damaged).result(SECONDS)
    assert loader.load(good).result(SECONDS).digest == good


def test_it_takes_only_what_others_leave_over(loader: LoaderProcess, blobs: OwnedBlobs) -> None:
    loader.load(put(blobs, 7.0)).result(SECONDS)  # it is up
    policies = {os.sched_getscheduler(t.id) for t in process(loader).threads()}
    assert policies == {os.SCHED_IDLE}


def test_killed_it_fails_what_it_had_and_the_next_load_starts_another(
    fresh: LoaderProcess, blobs: OwnedBlobs
) -> None:
    digest = put(blobs, 8.0)
    before = process(fresh)
    before.suspend()  # so that it cannot have answered
    owed = fresh.load(digest)
    before.send_signal(signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"ended \(-9\); try again"):
        owed.result(SECONDS)
    assert fresh.load(digest).result(SECONDS).digest == digest
    assert process(fresh).pid != before.pid


def test_a_read_that_hangs_ends_in_time_and_loading_goes_on(
    place: BlobPlace, blobs: OwnedBlobs
) -> None:
    good, hung = put(blobs, 13.0), put(blobs, 14.0)
    weights = next(Path(place.url).glob(f"sha256/*/{hung}/{WEIGHTS_NAME}"))
    weights.unlink()
    os.mkfifo(weights)  # nobody will ever write to it
    loader = LoaderProcess(place, deadline_s=1.0).open(TARGET)
    try:
        for _ in range(2):
            with pytest.raises(Unavailable, match="within 1 seconds: the place that holds it"):
                loader.load(hung).result(SECONDS)
            until(lambda: loader._worker._over)
            assert loader.load(good).result(SECONDS).digest == good
    finally:
        loader.close()


def test_signals_to_the_group_do_not_end_it_and_closing_does(
    fresh: LoaderProcess, blobs: OwnedBlobs
) -> None:
    digest = put(blobs, 9.0)
    fresh.load(digest).result(SECONDS)
    running = process(fresh)
    for number in (signal.SIGTERM, signal.SIGINT):
        running.send_signal(number)
    assert fresh.load(digest).result(SECONDS).digest == digest
    fresh.close()
    fresh._worker._process.wait(SECONDS)


def test_an_adapter_at_hand_holds_no_file_open(loader: LoaderProcess, blobs: OwnedBlobs) -> None:
    digest = put(blobs, 10.0)
    loader.load(digest).result(SECONDS)
    there, here = process(loader).num_fds(), psutil.Process().num_fds()
    at_hand = [loader.load(digest).result(SECONDS) for _ in range(20)]
    until(lambda: process(loader).num_fds() <= there)  # it closes its own after it has answered
    assert psutil.Process().num_fds() == here
    assert len(at_hand) == 20


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open none, nor be handed any."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_cannot_be_taken_in_for_want_of_files_fails_alone(
    loader: LoaderProcess, blobs: OwnedBlobs
) -> None:
    digest = put(blobs, 11.0)
    loader.load(digest).result(SECONDS)
    with no_more_files(), pytest.raises(Unavailable, match="too many files are open"):
        loader.load(digest).result(SECONDS)
    assert loader.load(digest).result(SECONDS).digest == digest


def test_a_worker_that_cannot_be_started_fails_the_load_alone(
    fresh: LoaderProcess, blobs: OwnedBlobs
) -> None:
    digest = put(blobs, 12.0)
    process(fresh).kill()
    until(lambda: fresh._worker._over)
    with no_more_files(), pytest.raises(Unavailable, match="no process can be started"):
        fresh.load(digest).result(SECONDS)
    assert fresh.load(digest).result(SECONDS).digest == digest


def test_it_dies_with_who_started_it_even_if_it_is_stopped(
    place: BlobPlace,
) -> None:
    script = (
        "import os, signal, sys\n"
        "from adapters_store.blob_place import BlobPlace\n"
        "from server.adapters.loader_process import LoaderProcess\n"
        "from tests.server.adapters.test_loader_process import TARGET\n"
        "loader = LoaderProcess(BlobPlace(sys.argv[1])).open(TARGET)\n"
        "try:\n"
        "    loader.load('0' * 64).result(30)\n"
        "except Exception:\n"
        "    pass\n"  # there is no such adapter; it is up
        "print(loader._worker._process.pid, flush=True)\n"
        "os.kill(loader._worker._process.pid, signal.SIGSTOP)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, place.url], capture_output=True, text=True, check=False
    )
    assert out.returncode == -signal.SIGKILL, out.stderr
    until(lambda: not _is_alive(int(out.stdout)))


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
