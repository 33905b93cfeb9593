"""Publishes and deletes in processes that are killed with SIGKILL, and tells what they promised.

Run as a process of its own: `python -m tests.adapters_store.crash_driver DATA_DIR ROUNDS SEED
ALIVE_S [STORE CATALOG]`, the last two being URLs; a round's child lives for ALIVE_S at most.
Each round forks a child (imports are paid once) that checks every earlier promise, then publishes
until it is killed. Prints one line of JSON: the promises still standing, and counts.
"""

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters_store.blob_place import BlobPlace
from adapters_store.store import AdapterStore
from tests.adapters_store.builders import facts_of, folder, uploads

BASE = "demo"


def open_store(data_dir: Path, store: str | None, catalog: str | None) -> AdapterStore:
    """As a machine has it that holds no copies yet, so that a check reads the store itself."""
    place = BlobPlace(store, str(data_dir / f"copies-{os.getpid()}")) if store else None
    return AdapterStore(data_dir, base_name=BASE, blobs=place, catalog=catalog)


def child(
    data_dir: Path, urls: Sequence[str | None], promises: dict[str, Any], first: int, say: int
) -> None:
    """Speaks lines to the pipe `say`; any broken promise is told as a line, too."""
    try:
        store = open_store(data_dir, *urls)
        verify(store, promises)
        tell(say, "ready")
        for count in range(first, first + 10_000):
            for name in (f"kept{count % 3}", f"kept{count % 3}b", "gone"):
                found = store.publish(name, uploads(folder(count + 0.5)), check=facts_of)
                tell(say, "published", name, found.version.number, found.version.digest)
            tell(say, "deleting")
            store.delete("gone")
    except BaseException as fault:
        tell(say, "fault", repr(fault))
    os._exit(1)


def verify(store: AdapterStore, promises: dict[str, Any]) -> None:
    store.check()
    for name, digest in promises.items():
        assert store.resolve(name).digest == digest, f"{name} is lost"


def tell(say: int, *words: object) -> None:
    os.write(say, json.dumps(words).encode() + b"\n")


def run_round(
    data_dir: Path,
    urls: Sequence[str | None],
    promises: dict[str, Any],
    first: int,
    alive_s: float,
) -> list[Any]:
    """The lines of a child that is killed `alive_s` after its first one, wherever it is then."""
    listen, say = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(listen)
        child(data_dir, urls, promises, first, say)
    os.close(say)
    heard = b""
    kill_at: float | None = None
    while kill_at is None or time.monotonic() < kill_at:
        wait = 30.0 if kill_at is None else max(0.0, kill_at - time.monotonic())
        if not select.select([listen], [], [], wait)[0]:
            break
        piece = os.read(listen, 65536)
        if not piece:
            break
        heard += piece
        kill_at = kill_at or time.monotonic() + alive_s
    os.kill(process, signal.SIGKILL)
    while piece := os.read(listen, 65536):
        heard += piece
    os.close(listen)
    os.waitpid(process, 0)
    return [json.loads(line) for line in heard.splitlines()]


def main(data_dir: Path, rounds: int, seed: int, alive_s: float, *urls: str) -> None:
    chance = random.Random(seed)
    promises: dict[str, str] = {}
    published = deletes = 0
    faults: list[str] = []
    for number in range(rounds):
        lives_s = chance.uniform(0, alive_s)
        places = urls or (None, None)
        for what, *rest in run_round(data_dir, places, promises, 1000 * number, lives_s):
            if what == "fault":
                faults.append(rest[0])
            elif what == "deleting":
                deletes += 1
                promises = {n: d for n, d in promises.items() if not n.startswith("gone")}
            elif what == "published":
                name, version, digest = rest
                promises[f"{name}@{version}"] = digest
                published += 1
    told = {"promises": promises, "published": published, "deletes": deletes, "faults": faults}
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
