"""A tuner in a process of its own, to be killed: python -m tests.training.tune.driver FOLDER N."""

import sys
from collections.abc import Sequence
from pathlib import Path

from adapters_store.store import AdapterStore
from training.tune import tuner
from training.tune.jobs import LocalJobs
from training.tune.study import Asked, open_study
from training.tune.tuner import Row, Search, Tuner

BASE = "tiny"
REQUEST = {"seed": 3, "adapterd": {"name": "sql"}}
FILES = {"model": BASE, "training_file": "file-1"}


class Silent:
    def show(self, rows: Sequence[Row]) -> None:
        pass

    def say(self, message: str) -> None:
        pass


def asked() -> Asked:
    return Asked(base=BASE, request=REQUEST, data={"training_file": "0"})


def storage(folder: Path) -> str:
    return f"sqlite:///{folder / 'tuning.sqlite3'}"


def tune(
    store: AdapterStore, url: str, trials: int, parallel: int = 1, jobs: LocalJobs | None = None
) -> list[Row]:
    with open_study(url, "sql", asked()) as study:
        search = Search(REQUEST | FILES, trials, parallel)
        made = Tuner(study, jobs or LocalJobs(store, base=BASE), search, Silent())
        made.run()
        return made.rows()


if __name__ == "__main__":
    tuner.POLL_S = 0.02
    place = Path(sys.argv[1])
    tune(AdapterStore(place, base_name=BASE), storage(place), int(sys.argv[2]))
