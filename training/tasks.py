"""What a job trains, from its files to its scores: text that goes on, or the class of a text.

Here: Task and its two kinds, task_of, Given. Not here: the order of a job's steps (run.py), each of
them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adapters_store.store import AdapterStore
from training.base import BaseFolder, load_model
from training.classifier import (
    class_scores,
    classes_of,
    labelled_rows,
    load_classifier,
    opened_classifier,
    save_labels,
)
from training.general_text import sample
from training.methods.quantized import quantization_config
from training.plan import Plan
from training.rows import batches, preference_rows, split, supervised_rows, tokenized
from training.spec import JobRequest
from training.tokens import Tokenized
from training.trial import Comparison, Questions, compare

MAX_GENERAL = 200
"""Rows of what should not be forgotten."""

Trial = Callable[[Path, Path | None], Comparison]
"""Scores what was trained, by its folder, beside what is served now."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a task works on."""

    request: JobRequest
    base: BaseFolder
    tokenizer: PreTrainedTokenizerBase
    store: AdapterStore  # its files
    longest: int  # tokens of a row, at most
    scratch: Path

    def file(self, file_id: str) -> BinaryIO:
        return self.store.files.open(file_id)[1]

    def place(self, field: str) -> Path:
        """For a file's rows."""
        return self.scratch / "rows" / field.replace(".", "-")


class Task(Protocol):
    """One kind of training. Methods are called once each, in this order."""

    def rows(self) -> tuple[Dataset, Dataset | None]:
        """To train on, and to evaluate on. Raises InvalidDataset."""
        ...

    def model(self, plan: Plan) -> Any:
        """To attach the adapter to. Raises OSError."""
        ...

    def trial(self, model: Any, held_out: Dataset | None) -> Trial:
        """`model`: as it is before training."""
        ...

    def batches(self, rows: Dataset, plan: Plan) -> Iterable[Mapping[str, Tensor]]:
        """For methods that look at some before they begin."""
        ...

    def add_files(self, folder: Path) -> None:
        """To what was trained: what it cannot be used without."""
        ...


def task_of(given: Given) -> Task:
    return Classification(given) if given.request.adapterd.task == "classification" else Text(given)


class Text:
    """The next tokens of answers, or which of two answers is better."""

    def __init__(self, given: Given) -> None:
        self._given = given

    def rows(self) -> tuple[Dataset, Dataset | None]:
        return _both(self._given, self._read)

    def _read(self, field: str, file_id: str, *, preference: bool | None = None) -> Dataset:
        given = self._given
        if preference is None:
            preference = given.request.method.type == "dpo"
        reader = preference_rows if preference else supervised_rows
        with given.file(file_id) as content:
            return reader(
                content,
                given.tokenizer,
                max_tokens=given.longest,
                folder=given.place(field),
                field=field,
            )

    def model(self, plan: Plan) -> Any:
        dtype = self._given.request.adapterd.dtype
        return load_model(self._given.base, dtype, quantization_config(plan.adapter))

    def trial(self, model: Any, held_out: Dataset | None) -> Trial:
        given = self._given
        questions = Questions(
            [] if held_out is None else tokenized(held_out),
            self._general(model),
            answered=given.request.adapterd.eval_examples,
        )
        return partial(compare, given.base, given.tokenizer, questions)

    def _general(self, model: Any) -> list[Tokenized]:
        named = self._given.request.adapterd.general_file
        if named is None:
            return sample(model, self._given.tokenizer)
        rows = self._read("adapterd.general_file", named, preference=False)
        return tokenized(rows)[:MAX_GENERAL]

    def batches(self, rows: Dataset, plan: Plan) -> Iterable[Mapping[str, Tensor]]:
        return batches(rows, plan.batch_size)

    def add_files(self, folder: Path) -> None:
        """None: an adapter's files say all of it."""


class Classification:
    """Which of the training file's answers a text has."""

    def __init__(self, given: Given) -> None:
        self._given = given
        with given.file(given.request.training_file) as content:
            self._classes = classes_of(content)
        padding: Any = given.tokenizer.pad_token_id  # an int, as BaseFolder settles it
        self._padding: int = padding

    def rows(self) -> tuple[Dataset, Dataset | None]:
        return _both(self._given, self._read)

    def _read(self, field: str, file_id: str) -> Dataset:
        given = self._given
        with given.file(file_id) as content:
            return labelled_rows(
                content,
                given.tokenizer,
                self._classes,
                max_tokens=given.longest,
                folder=given.place(field),
                field=field,
            )

    def model(self, plan: Plan) -> Any:
        return load_classifier(
            self._given.base,
            self._classes,
            padding=self._padding,
            seed=plan.seed,
            dtype=self._given.request.adapterd.dtype,
        )

    def trial(self, model: Any, held_out: Dataset | None) -> Trial:
        def scored(new: Path, current: Path | None) -> Comparison:
            """The base has no head, and no version one that is served: the new one stands alone."""
            own = opened_classifier(self._given.base, new, padding=self._padding)
            return Comparison(None, None, class_scores(own, held_out, padding=self._padding))

        return scored

    def batches(self, rows: Dataset, plan: Plan) -> Iterable[Mapping[str, Tensor]]:
        raise AssertionError("no method that begins with a look at the data has classes")

    def add_files(self, folder: Path) -> None:
        save_labels(self._classes, folder)


def _both(given: Given, read: Callable[[str, str], Dataset]) -> tuple[Dataset, Dataset | None]:
    """The training file's rows and the validation file's, or a share of the former's."""
    request = given.request
    rows = read("training_file", request.training_file)
    if request.validation_file is not None:
        return rows, read("validation_file", request.validation_file)
    return split(rows, request.adapterd.holdout, seed=request.seed or 0)
