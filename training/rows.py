"""A training file as rows of token ids on disk, in the columns that trl's trainers take.

Here: supervised_rows, preference_rows, written, split, batches, padded, tokenized. Not here: one
example's tokens (tokens.py).
Memory does not grow with the file: rows are Arrow files that are mapped.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters_store.errors import InvalidDataset, InvalidRequest
from training.dataset import MAX_FAULTS, LineFault, require_no_faults
from training.examples import Example, PreferenceExample, read_example
from training.tokens import NOT_LEARNED, Tokenized, tokenize, tokenize_preference

MAX_HELD_OUT = 500
"""More rows than these tell little more about a loss, and take time."""

_IDS = List(Value("int32"))
SUPERVISED = Features({"input_ids": _IDS, "labels": _IDS})
PREFERENCE = Features({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS})


def supervised_rows(
    file: BinaryIO,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    folder: Path,
    field: str = "training_file",
) -> Dataset:
    """Columns input_ids and labels; a line may come to several rows.

    `file` was found sound by check_dataset. Raises InvalidDataset (param `field`), numbering the
    lines that do not fit the base.
    """

    def rows(example: Example) -> Iterator[dict[str, Any]]:
        if isinstance(example, PreferenceExample):
            raise InvalidRequest('preferences are learned with the method "dpo"')
        for one in tokenize(example, tokenizer, max_tokens=max_tokens):
            yield {"input_ids": one.input_ids, "labels": one.labels}

    return written(file, rows, SUPERVISED, folder, field)


def preference_rows(
    file: BinaryIO,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    folder: Path,
    field: str = "training_file",
) -> Dataset:
    """Columns prompt_ids, chosen_ids and rejected_ids. Raises as `supervised_rows` does."""

    def rows(example: Example) -> Iterator[dict[str, Any]]:
        if not isinstance(example, PreferenceExample):
            raise InvalidRequest('the method "dpo" learns preferences, and this is none')
        one = tokenize_preference(example, tokenizer, max_tokens=max_tokens)
        yield {
            "prompt_ids": one.prompt_ids,
            "chosen_ids": one.chosen_ids,
            "rejected_ids": one.rejected_ids,
        }

    return written(file, rows, PREFERENCE, folder, field)


def split(rows: Dataset, share: float, *, seed: int) -> tuple[Dataset, Dataset | None]:
    """Rows to train on, and `share` of them (at most MAX_HELD_OUT) to evaluate on, if that is any.

    Which are held out depends on the seed and the number of rows alone.
    """
    held_out = min(MAX_HELD_OUT, round(share * len(rows)))
    if not held_out:
        return rows, None
    parts = rows.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def batches(rows: Dataset, size: int) -> Iterator[dict[str, Tensor]]:
    """input_ids, attention_mask and labels, each [size, longest], in the rows' order.

    Of preferences, the prompts with the better answers.
    """
    for start in range(0, len(rows) - size + 1, size):
        yield padded(tokenized(rows.select(range(start, start + size))))


def padded(rows: Sequence[Tokenized]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, each [rows, longest], padded on the right."""
    longest = max(len(row.input_ids) for row in rows)
    inputs = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(inputs), torch.full_like(inputs, NOT_LEARNED)
    for at, row in enumerate(rows):
        inputs[at, : len(row.input_ids)] = torch.tensor(row.input_ids)
        mask[at, : len(row.input_ids)] = 1
        labels[at, : len(row.labels)] = torch.tensor(row.labels)
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


def tokenized(rows: Dataset) -> list[Tokenized]:
    """Rows in memory; of preferences, the prompts with the better answers."""
    if "labels" in rows.column_names:
        columns = (rows["input_ids"], rows["labels"])
        return [Tokenized(tuple(ids), tuple(labels)) for ids, labels in zip(*columns, strict=True)]
    columns = (rows["prompt_ids"], rows["chosen_ids"])
    return [
        Tokenized((*prompt, *chosen), (*[NOT_LEARNED] * len(prompt), *chosen))
        for prompt, chosen in zip(*columns, strict=True)
    ]


def written(
    file: BinaryIO,
    rows: Callable[[Example], Iterator[dict[str, Any]]],
    features: Features,
    folder: Path,
    field: str,
) -> Dataset:
    """What `rows` makes of each example. Raises InvalidDataset as `supervised_rows` does."""
    faults: list[LineFault] = []
    count = 0

    def generate() -> Iterator[dict[str, Any]]:
        nonlocal count
        for number, line in enumerate(file, 1):
            try:
                yield from rows(read_example(line.rstrip(b"\r\n"))[1])
            except InvalidRequest as bad:
                count += 1
                if len(faults) < MAX_FAULTS:
                    faults.append(LineFault(number, bad.message))

    try:
        found = Dataset.from_generator(
            generate, features=features, cache_dir=str(folder), fingerprint=uuid.uuid4().hex
        )
    except ValueError:  # without a single row there is nothing that it could map
        require_no_faults(faults, count, field=field)
        raise InvalidDataset(f"{field} has no examples", param=field) from None
    require_no_faults(faults, count, field=field)
    return found
