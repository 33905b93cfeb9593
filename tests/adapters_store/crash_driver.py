"""Changes a store in processes that are killed with SIGKILL, and tells what they promised.

Run as a process of its own: `python -m tests.adapters_store.crash_driver DATA_DIR ROUNDS SEED
[STORE CATALOG]`, the last two being URLs. Each round forks a child (imports are paid once) that
checks every earlier promise, then uploads, moves aliases, deletes and collects garbage until it is
killed. Prints one line of JSON: the promises still standing, how often each thing was done, and the
faults.

A promise: reference → the digests it may have, "" if it may be absent; none: it must be absent.
"""

import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters_store.aliases import Target
from adapters_store.blob_place import BlobPlace
from adapters_store.errors import NotFound
from adapters_store.store import AdapterStore
from tests.adapters_store.builders import facts_of, folder, uploads

BASE = "demo"
KEPT = 3  # versions of each name; older ones are deleted
LINES = 40  # a round says fewer before it is killed: three times through all changes
MOMENT_S = 0.02
SILENCE_S = 30.0

Promises = dict[str, list[str]]


def open_store(data_dir: Path, store: str | None, catalog: str | None) -> AdapterStore:
    """As a machine has it that holds no copies yet, so that a check reads the store itself."""
    place = BlobPlace(store, str(data_dir / f"copies-{os.getpid()}")) if store else None
    return AdapterStore(data_dir, base_name=BASE, blobs=place, catalog=catalog)


def child(
    data_dir: Path, urls: Sequence[str | None], promises: Promises, first: int, say: int
) -> None:
    """Speaks lines to the pipe `say`; any broken promise is told as a line, too."""
    try:
        store = open_store(data_dir, *urls)
        verify(store, promises)
        tell(say, "ready")
        for count in range(first, first + 10_000):
            gone = f"gone{count}"
            for name in ("a", "b", gone):  # the same content under three names
                found = store.publish(name, uploads(folder(count + 0.5)), check=facts_of).version
                tell(say, "done", "publish", f"{name}@{found.number}", found.digest)
            work_on(store, "a", promises, say)
            work_on(store, "b", promises, say)
            tell(say, "doing", f"{gone}@1", None)
            store.delete(gone)
            tell(say, "done", "delete", f"{gone}@1", None)
            store.collect_garbage()
            tell(say, "done", "gc", None, None)
    except BaseException as fault:
        tell(say, "fault", repr(fault))
    os._exit(1)


def work_on(store: AdapterStore, name: str, promises: Promises, say: int) -> None:
    """Moves `name:prod` to the newest version, then deletes the oldest ones."""
    versions = store.versions(name)
    newest = versions[-1]
    tell(say, "doing", f"{name}:prod", newest.digest)
    store.aliases.move(name, "prod", Target(newest.number))
    tell(say, "done", "move", f"{name}:prod", newest.digest)
    for old in versions[:-KEPT]:
        reference = f"{name}@{old.number}"
        if reference not in promises:  # its publisher may have been killed before it told of it
            tell(say, "seen", reference, old.digest)
        tell(say, "doing", reference, None)
        store.delete_version(name, old.number, force=True)
        tell(say, "done", "delete version", reference, None)


def verify(store: AdapterStore, promises: Promises) -> None:
    store.check()
    for reference, allowed in promises.items():
        try:
            found = store.resolve(reference).digest
        except NotFound:
            assert "" in allowed or not allowed, f"{reference} is lost"
        else:
            assert found in allowed, f"{reference} has {found[:8]}, which nobody was told"


def tell(say: int, *words: object) -> None:
    os.write(say, json.dumps(words).encode() + b"\n")


def hear(promises: Promises, words: list[Any]) -> None:
    """What was begun may have happened or not, what was done has. "": it may not be there."""
    if words[0] == "doing":
        _, reference, digest = words
        promises.setdefault(reference, [""]).append(digest or "")
    elif words[0] == "seen":
        _, reference, digest = words
        promises.setdefault(reference, [digest])
    elif words[0] == "done" and words[2] is not None:
        _, _, reference, digest = words
        promises[reference] = [] if digest is None else [digest]


def run_round(
    data_dir: Path,
    urls: Sequence[str | None],
    promises: Promises,
    first: int,
    chance: random.Random,
) -> list[Any]:
    """The lines of a child that is killed a moment after one of its first, whichever is drawn.

    Counted in lines, so that a slow machine gets as far as a fast one; the moment is for the parts
    of a change that say nothing.
    """
    listen, say = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(listen)
        child(data_dir, urls, promises, first, say)
    os.close(say)
    heard, lines = b"", chance.randrange(1, LINES)
    while heard.count(b"\n") < lines:
        if not select.select([listen], [], [], SILENCE_S)[0]:
            break
        piece = os.read(listen, 65536)
        if not piece:
            break
        heard += piece
    time.sleep(chance.uniform(0, MOMENT_S))
    os.kill(process, signal.SIGKILL)
    while piece := os.read(listen, 65536):
        heard += piece
    os.close(listen)
    os.waitpid(process, 0)
    return [json.loads(line) for line in heard.splitlines()]


def main(data_dir: Path, rounds: int, seed: int, *urls: str) -> None:
    chance = random.Random(seed)
    promises: Promises = {}
    done: Counter[str] = Counter()
    faults: list[str] = []
    for number in range(rounds):
        for words in run_round(data_dir, urls or (None, None), promises, 1000 * number, chance):
            hear(promises, words)
            if words[0] == "fault":
                faults.append(words[1])
            elif words[0] == "done":
                done[words[1]] += 1
    print(json.dumps({"promises": promises, "done": done, "faults": faults}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
