"""A study on this machine: jobs in the local store, and workers that live as long as the tuner.

Here: LocalPlace, local_place. Not here: the study and its trials (training/tune/), what is printed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adapters_store.errors import InvalidDataset
from adapters_store.store import AdapterStore
from server.child_process import finding_ours
from server.config import Settings, SettingsError, variable_of
from server.open_store import blob_place, open_store
from training.tune.jobs import LocalJobs
from training.uploads import keep_examples

LEASE_S = 15.0
"""A worker that was killed is soon succeeded; one that lives renews its lease twice meanwhile."""

STARTS = 3  # of one worker that ends by itself
STOP_S = 30.0  # for a checkpoint, before it is killed


class LocalPlace(LocalJobs):
    """The store's jobs, and `count` workers to do them."""

    def __init__(
        self,
        store: AdapterStore,
        settings: Settings,
        flags: Mapping[str, str],
        *,
        count: int,
        niceness: int,
    ) -> None:
        super().__init__(store, base=settings.base_name)
        self._shelf = store.files
        self._command = [
            sys.executable, "-P", "-m", "server.tied_worker", str(os.getpid()),
            "worker", "--nice", str(niceness), "--lease-seconds", str(LEASE_S),
        ]  # fmt: skip
        told = {variable_of(name): value for name, value in flags.items()}  # a URL has a password
        self._environment = _environment(settings, count) | told
        self._log = settings.data_dir / "tune-workers.log"
        self._count = count
        self._workers: list[subprocess.Popen[bytes]] = []
        self._ended = 0

    def upload(self, path: Path) -> str:
        """The file's id. Raises SettingsError, naming it, if lines of it cannot be trained on."""
        with path.open("rb") as file:
            try:
                return keep_examples(self._shelf, file, path.name).id
            except InvalidDataset as bad:
                raise SettingsError(f"{path}: {bad.message}") from None

    def tend(self, idle_s: float) -> str | None:
        """Starts workers where they lack. Raises SettingsError if they keep ending."""
        ended = [worker for worker in self._workers if worker.poll() is not None]
        self._ended += len(ended)
        if self._ended > STARTS * self._count:
            raise SettingsError(f"workers end by themselves: {self._last_words()}")
        self._workers = [worker for worker in self._workers if worker not in ended]
        while len(self._workers) < self._count:
            with self._log.open("ab") as log:
                self._workers.append(
                    subprocess.Popen(
                        self._command,
                        env=self._environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is ours; they hear of it from `close`
                    )
                )

    def close(self) -> None:
        """Ends the workers; what they are at is given back, to be gone on with."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'they say nothing'} (see {self._log})"


@contextmanager
def local_place(
    settings: Settings, flags: Mapping[str, str], *, count: int, niceness: int
) -> Iterator[LocalPlace]:
    """Opened, and its workers ended at the end.

    Raises SettingsError, Unavailable, StoreCorrupt.
    """
    with ExitStack() as opened:
        store = open_store(settings, blob_place(settings))
        opened.callback(store.close)
        place = LocalPlace(store, settings, flags, count=count, niceness=niceness)
        opened.callback(place.close)
        yield place


def _environment(settings: Settings, count: int) -> dict[str, str]:
    """Cores are shared out among the workers, where nothing else is said."""
    threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // count)
    return finding_ours({"OMP_NUM_THREADS": str(threads)} | os.environ)
