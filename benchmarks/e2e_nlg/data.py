"""The E2E NLG challenge: restaurant facts (a meaning representation, mr) and sentences for them.

The data is no part of this project (CC-BY-SA 4.0; Novikova et al. 2017, arXiv:1706.09254) and is
read where it lies: $ADAPTERD_DATA, or shared/data beside the checkout.
"""

import csv
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DATA_VARIABLE = "ADAPTERD_DATA"


class DataMissing(Exception):
    """The data set is not on this machine; the message says where it was looked for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One meaning representation and every sentence that people wrote for it."""

    mr: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Parts of the development set; no mr is in both."""

    train: tuple[Facts, ...]
    held_out: tuple[Facts, ...]


def data_folder() -> Path:
    """The folder of the CSV files. Raises DataMissing."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE) or beside) / "e2e_nlg"
    if not (folder / "devset.csv").is_file():
        raise DataMissing(
            f"the E2E NLG data set is not here: no {folder.name}/devset.csv in {DATA_VARIABLE} "
            "or in shared/data beside the checkout"
        )
    return folder


def development(folder: Path, *, seed: int, held_out: float = 0.1) -> Split:
    """devset.csv, its mrs shuffled by `seed`; the share `held_out` of them is not trained on."""
    facts = _read(folder / "devset.csv")
    random.Random(seed).shuffle(facts)
    count = max(1, round(len(facts) * held_out))
    return Split(train=tuple(facts[count:]), held_out=tuple(facts[:count]))


def whole_test_set(folder: Path) -> tuple[Facts, ...]:
    """testset_w_refs.csv."""
    return tuple(_read(folder / "testset_w_refs.csv"))


def sample_of_test_set(folder: Path, count: int, *, seed: int) -> Sequence[Facts]:
    """`count` mrs of testset_w_refs.csv, drawn by `seed`, each with all its references."""
    return random.Random(seed).sample(_read(folder / "testset_w_refs.csv"), count)


def _read(path: Path) -> list[Facts]:
    """One Facts per different mr, in the file's order."""
    grouped: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            grouped.setdefault(row["mr"], []).append(row["ref"])
    return [Facts(mr, tuple(references)) for mr, references in grouped.items()]
