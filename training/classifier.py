"""Texts into classes: the rows, the base with a head of classes, its loss and its scores.

Here: classes_of, labelled_rows, load_classifier, opened_classifier, save_labels, Classifying,
padded, class_loss, class_scores. Not here: the adapter (methods/), the run (loop.py).

The head is transformers' own: one linear map of the last token's hidden state, its rows the
classes in alphabetical order.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from datasets import Dataset, Features, List, Value
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from adapters_store.errors import InvalidDataset, InvalidRequest
from training.base import BaseFolder, load_base
from training.dataset import examples_of
from training.evaluation import BATCH_TOKENS, Scores
from training.examples import Example, PreferenceExample
from training.rows import written
from training.tokens import answer_text, prompt_ids
from training.trial import CONFIG

LABELS = "labels.json"
"""Beside an adapter: each class by the number of its row, as transformers' id2label."""

MAX_CLASSES = 1000
LABELLED = Features({"input_ids": List(Value("int32")), "labels": Value("int64")})


def classes_of(file: BinaryIO) -> tuple[str, ...]:
    """The distinct answers of a training file that was found sound, sorted.

    Raises InvalidDataset if they are not 2 to MAX_CLASSES.
    """
    found: set[str] = set()
    for example in examples_of(file):
        if isinstance(example, PreferenceExample):
            raise InvalidDataset("a preference has no class", param="training_file")
        found.add(answer_text(example))
        if len(found) > MAX_CLASSES:
            raise InvalidDataset(
                f"training_file: more than {MAX_CLASSES} different answers; each is a class of "
                'its own, so use the task "generation"',
                param="training_file",
            )
    if len(found) < 2:
        raise InvalidDataset(
            "training_file: every answer is the same, and a class is told from another",
            param="training_file",
        )
    return tuple(sorted(found))


def labelled_rows(
    file: BinaryIO,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    *,
    max_tokens: int,
    folder: Path,
    field: str,
) -> Dataset:
    """Columns input_ids, of the prompt as the server reads it, and labels, a class's number.

    Raises InvalidDataset (param `field`), numbering the lines that do not fit the base, or whose
    answer is none of the classes.
    """
    numbers = {name: number for number, name in enumerate(classes)}

    def rows(example: Example) -> Iterator[dict[str, Any]]:
        if isinstance(example, PreferenceExample):
            raise InvalidRequest("a preference has no class")
        answer = answer_text(example)
        if answer not in numbers:
            raise InvalidRequest("the answer is none of the training file's, so it has no class")
        ids = prompt_ids(example, tokenizer, max_tokens=max_tokens)
        yield {"input_ids": ids, "labels": numbers[answer]}

    return written(file, rows, LABELLED, folder, field)


def load_classifier(
    base: BaseFolder,
    classes: Sequence[str],
    *,
    padding: int,
    seed: int,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Any:
    """The base with a new head in place of its own; the same seed gives the same head.

    `padding`: the token that rows are filled up with. Raises OSError.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return load_base(
            AutoModelForSequenceClassification,
            base,
            dtype,
            num_labels=len(classes),
            problem_type="single_label_classification",
            pad_token_id=padding,
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
        )


def opened_classifier(base: BaseFolder, folder: Path, *, padding: int) -> Any:
    """What was saved in `folder`, with its labels. Raises OSError, ValueError."""
    labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    classes = [labels[str(number)] for number in range(len(labels))]
    if not (folder / CONFIG).exists():  # a whole model
        base = BaseFolder(base.name, folder, base.device)
    model = load_classifier(base, classes, padding=padding, seed=0)
    if not (folder / CONFIG).exists():
        return model
    return PeftModel.from_pretrained(model, str(folder)).eval()


def save_labels(classes: Sequence[str], folder: Path) -> None:
    """Beside what was trained, which says nothing without."""
    text = json.dumps({str(at): name for at, name in enumerate(classes)}, indent=2)
    (folder / LABELS).write_text(text + "\n", encoding="utf-8")


def padded(rows: Sequence[Mapping[str, Any]], *, padding: int) -> dict[str, Tensor]:
    """input_ids and attention_mask, [rows, longest], padded on the right; labels, [rows]."""
    longest = max(len(row["input_ids"]) for row in rows)
    inputs = torch.full((len(rows), longest), padding, dtype=torch.int64)
    mask = torch.zeros_like(inputs)
    for at, row in enumerate(rows):
        inputs[at, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[at, : len(row["input_ids"])] = 1
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


def class_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Cross-entropy, the mean over the whole batch, however many parts it is worked on in."""
    loss = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Classifying:
    """A mixin over transformers' Trainer: it logs how many tokens were read, as trl's do."""

    _tokens = 0

    def compute_loss(
        self: Any, model: Any, inputs: dict[str, Any], *more: Any, **named: Any
    ) -> Any:
        if self.model.training:
            self._tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *more, **named)  # type: ignore[misc]

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs["num_tokens"] = self._tokens
        super().log(logs, start_time)  # type: ignore[misc]  # transformers'


@torch.no_grad()
def class_scores(model: Any, rows: Dataset | None, *, padding: int) -> Scores:
    """Accuracy as the exact match; F1 is the mean over the classes that are wanted or said."""
    total, pairs, tokens = 0.0, [], 0
    for batch in _batches(rows, padding):
        asked = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        logits = model(**asked).logits.float().cpu()
        total += nn.functional.cross_entropy(logits, batch["labels"], reduction="sum").item()
        pairs += zip(batch["labels"].tolist(), logits.argmax(-1).tolist(), strict=True)
        tokens += int(batch["attention_mask"].sum())
    count = len(pairs)
    return Scores(
        eval_loss=total / count if count else None,
        perplexity=None,
        exact_match=sum(wanted == said for wanted, said in pairs) / count if count else None,
        f1=macro_f1(pairs) if count else None,
        tokens=tokens,
        examples=count,
        general_loss=None,
        kl_from_base=None,
    )


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """Of (wanted, said): the mean of 2 · both / (wanted + said) over classes that occur."""
    seen = {number for pair in pairs for number in pair}
    scores = (
        2 * sum(wanted == said == one for wanted, said in pairs) / sum(p.count(one) for p in pairs)
        for one in seen
    )
    return sum(scores) / len(seen)


def _batches(rows: Dataset | None, padding: int) -> Iterator[dict[str, Tensor]]:
    """Rows of like length, BATCH_TOKENS at most with padding, or one row."""
    listed = [] if rows is None else rows.to_list()
    ordered = sorted(listed, key=lambda row: len(row["input_ids"]))
    while ordered:
        size = max(1, BATCH_TOKENS // len(ordered[-1]["input_ids"]))
        yield padded(ordered[-size:], padding=padding)
        ordered = ordered[:-size]
