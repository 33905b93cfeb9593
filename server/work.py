"""Puts a training worker together and runs it until told to stop: `adapterd worker`.

Here: run, workplace, signals, niceness. Not here: jobs (training/), the server.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

import demo
from adapters_store.content import AdapterContent, AdapterFacts, BaseModel
from adapters_store.errors import EngineStartFailed
from adapters_store.store import AdapterStore
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits, slot_limits
from server.config import Settings, SettingsError
from server.engine.base_files import resolve_model
from server.inspect_adapter import base_of, with_norms
from server.open_store import blob_place, open_store

if TYPE_CHECKING:  # needs the train extra
    from training.base import BaseFolder
    from training.run import Workplace


def run(
    settings: Settings,
    *,
    niceness: int,
    lease_s: float,
    until_empty: bool,
    teachers: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Works until a signal, or until no job waits; returns the exit status.

    `teachers`: larger models by their names, each a folder or a hub id. Raises SettingsError,
    Unavailable, StoreCorrupt, EngineStartFailed (no such base or teacher).
    """
    prepare_training(settings, log_level=settings.log_level)
    os.nice(niceness)
    from training.worker import work

    stop, heard = threading.Event(), []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_hear, stop, heard))
    gc.freeze()  # what is imported stays
    folders = {name: _teacher_folder(name, model) for name, model in teachers.items()}
    with closing(open_store(settings, blob_place(settings))) as store:
        place = workplace(settings, store, lease_s=lease_s, teachers=folders)
        name = f"{socket.gethostname()}-{os.getpid()}"
        print(f"worker {name} waits for jobs on {settings.base_name}", flush=True)
        work(place, name=name, stop=stop, until_empty=until_empty)
    return 128 + heard[0] if heard else 0


def prepare_training(settings: Settings, *, log_level: str) -> None:
    """This process's log and threads.

    Raises SettingsError, with the remedy, unless the trainers' libraries are installed.
    """
    _log_to_terminal(log_level)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    for package in ("accelerate", "datasets", "peft", "trl"):
        if find_spec(package) is None:
            raise SettingsError(
                f"training needs {package}, which is not installed: pip install 'adapterd[train]'"
            )


def _teacher_folder(name: str, model: str) -> Path:
    try:
        return resolve_model(model)
    except EngineStartFailed as missing:
        told = missing.message.removeprefix(f"--model {model}: ").replace("--model", "--teacher")
        raise EngineStartFailed(f"--teacher {name}={model}: {told}") from None


def workplace(
    settings: Settings,
    store: AdapterStore,
    *,
    lease_s: float,
    teachers: Mapping[str, Path] = MappingProxyType({}),
) -> "Workplace":
    """What every job is worked on with; adapters are checked as a server with these settings would.

    Raises EngineStartFailed, InvalidRequest.
    """
    from training.checkpoints import CheckpointShelf
    from training.jobs import JobQueue
    from training.run import Workplace

    base = base_folder(settings)
    checker = _Checker(settings, base.folder)
    return Workplace(
        store=store,
        base=base,
        check=checker,
        excess=checker.excess,
        queue=JobQueue(store.database, base=settings.base_name, lease_s=lease_s),
        shelf=CheckpointShelf(store.database, store.objects, store.staging),
        teachers=teachers,
    )


def base_folder(settings: Settings) -> "BaseFolder":
    """The base that is trained on. Raises EngineStartFailed."""
    from training.base import BaseFolder

    folder = resolve_model(settings.model or str(demo.base_path()))
    return BaseFolder(settings.base_name, folder, settings.device)


class _Checker:
    """Checks adapters against the base, which is looked at when the first one comes."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._known: tuple[BaseModel, SlotLimits] | None = None

    def __call__(self, content: AdapterContent) -> AdapterFacts:
        """Raises InvalidAdapter, UnsupportedAdapter."""
        base, limits = self._base_and_limits()
        return methods.check(content, base, limits=limits)

    def excess(self, rank: int) -> str | None:
        """What is wrong with a rank that is too large to be served; None if it is not."""
        return self._base_and_limits()[1].excess(rank)

    def _base_and_limits(self) -> tuple[BaseModel, SlotLimits]:
        if self._known is None:
            base = with_norms(base_of(str(self._folder)), self._folder)
            limits = slot_limits(
                base.modules.values(),
                torch.float32,
                slots=self._settings.max_resident_adapters,
                max_rank=self._settings.max_rank,
                slot_bytes=self._settings.slot_bytes,
            )
            self._known = base, limits
        return self._known


def _hear(stop: threading.Event, heard: list[int], number: int, _frame: object) -> None:
    if stop.is_set():  # a second signal: at once
        os._exit(128 + number)
    heard.append(number)
    stop.set()
    print("giving the job back; a second signal ends at once", file=sys.stderr)


def _log_to_terminal(level: str) -> None:
    """Ours from `level` on; the trainers' libraries' warnings."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in (
        "alembic",
        "aiobotocore",
        "httpx2",
        "datasets",
        "matplotlib",
        "fsspec",
        "accelerate",
    ):
        logging.getLogger(name).setLevel("WARNING")
