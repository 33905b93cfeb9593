"""A training file as the advisor sees it: a part to probe on, a part held out, what all comes to.

Here: Sampled, sampled. Not here: rows of jobs (rows.py), which have no groups and go to disk.
Memory is bounded: of a longer file, examples are drawn evenly (reservoir sampling, Vitter 1985).
"""

from dataclasses import dataclass
from random import Random
from typing import BinaryIO

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from adapters_store.errors import InvalidDataset, InvalidRequest
from training.dataset import MAX_FAULTS, LineFault, require_no_faults
from training.examples import PreferenceExample, read_example
from training.rows import SUPERVISED
from training.tokens import Tokenized, tokenize

LEAST = 16
"""Fewer examples tell nothing of methods."""

HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Sampled:
    train: tuple[Tokenized, ...]
    held_out: tuple[Tokenized, ...]
    groups: tuple[str | None, ...]  # of held_out
    rows: int  # of the whole file
    tokens: int  # of the whole file
    longest: int  # tokens

    @property
    def all(self) -> tuple[Tokenized, ...]:
        return (*self.train, *self.held_out)

    def dataset(self) -> Dataset:
        """What is trained on, as loop.train takes it."""
        columns = {
            "input_ids": [list(row.input_ids) for row in self.train],
            "labels": [list(row.labels) for row in self.train],
        }
        return Dataset.from_dict(columns, features=SUPERVISED)


def sampled(
    file: BinaryIO,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    max_examples: int,
    held_out: int,
    seed: int,
    field: str = "training_file",
) -> Sampled:
    """Reads all of a JSONL file from where it stands.

    Raises InvalidDataset (param `field`), numbering lines at fault, or saying that they are too
    few; preferences are at fault.
    """
    rng = Random(seed)
    kept: list[tuple[tuple[Tokenized, ...], str | None]] = []
    faults: list[LineFault] = []
    good = bad = rows = tokens = longest = 0
    for number, line in enumerate(file, 1):
        try:
            found, group = _tokenized(line, tokenizer, max_tokens)
        except InvalidRequest as fault:
            bad += 1
            if len(faults) < MAX_FAULTS:
                faults.append(LineFault(number, fault.message))
            continue
        good += 1
        rows += len(found)
        tokens += sum(len(one.input_ids) for one in found)
        longest = max(longest, *(len(one.input_ids) for one in found))
        if len(kept) < max_examples:
            kept.append((found, group))
        elif (at := rng.randrange(good)) < max_examples:
            kept[at] = found, group
    require_no_faults(faults, bad, field=field)
    if good < LEAST:
        raise InvalidDataset(
            f"{field} has {good} examples; advice takes {LEAST} at least", param=field
        )
    rng.shuffle(kept)
    count = min(held_out, max(LEAST // 4, round(HELD_OUT_SHARE * len(kept))))
    asked = [(row, group) for found, group in kept[:count] for row in found]
    return Sampled(
        train=tuple(row for found, _ in kept[count:] for row in found),
        held_out=tuple(row for row, _ in asked),
        groups=tuple(group for _, group in asked),
        rows=rows,
        tokens=tokens,
        longest=longest,
    )


def _tokenized(
    line: bytes, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[tuple[Tokenized, ...], str | None]:
    _, example = read_example(line.rstrip(b"\r\n"))
    if isinstance(example, PreferenceExample):
        raise InvalidRequest("preferences are learned with the method 'dpo'; advice is on examples")
    return tokenize(example, tokenizer, max_tokens=max_tokens), example.group
