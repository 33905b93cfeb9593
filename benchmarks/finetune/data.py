"""Banking77 and E2E NLG as training files: one user's message, one answer.

The data are no part of this project: banking77 is CC-BY 4.0 (Casanueva et al. 2020,
arXiv:2003.04807), E2E NLG CC-BY-SA 4.0 (Novikova et al. 2017, arXiv:1706.09254). They are read
where they lie: $ADAPTERD_DATA, or shared/data beside the checkout.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.e2e_nlg import data as e2e
from benchmarks.e2e_nlg.prompt import message


@dataclass(frozen=True, slots=True)
class Task:
    """`train` and `test` are JSONL. `facts`: what E2E's test answers are held against."""

    name: str
    train: bytes
    test: bytes
    facts: tuple[e2e.Facts, ...] = ()


def banking77() -> Task:
    """The published splits: 10,003 messages to train on, 3,080 to test. Raises DataMissing."""
    folder = e2e.data_folder().parent / "banking77"
    if not folder.is_dir():
        raise e2e.DataMissing(f"banking77 is not here: there is no folder {folder.name}")

    def split(name: str) -> bytes:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return _jsonl(
                (row["text"], row["category"].replace("_", " ")) for row in csv.DictReader(file)
            )

    return Task("banking77", split("train.csv"), split("test.csv"))


def e2e_nlg(*, seed: int = 0) -> Task:
    """devset.csv to train on, testset_w_refs.csv to test, each mr once. Raises DataMissing."""
    folder = e2e.data_folder()
    split = e2e.development(folder, seed=seed, held_out=0.02)
    tested = e2e.whole_test_set(folder)
    return Task(
        "e2e-nlg",
        _jsonl(
            (message(one.mr)["content"], text) for one in split.train for text in one.references
        ),
        _jsonl((message(one.mr)["content"], one.references[0]) for one in tested),
        tested,
    )


def plain(chats: bytes) -> bytes:
    """The same as prompts and completions, for a base without a chat template."""
    lines = []
    for line in chats.splitlines():
        asked, said = (message["content"] for message in json.loads(line)["messages"])
        lines.append(json.dumps({"prompt": asked, "completion": f" {said}"}).encode())
    return b"\n".join(lines) + b"\n"


def _jsonl(pairs: Iterable[tuple[str, str]]) -> bytes:
    lines = (
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in pairs
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
