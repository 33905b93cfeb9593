"""What a model, as it is, makes of rows: the loss of each, and whether answers are short.

Here: RowLosses, row_losses, paired_error, short_answers. Not here: answers' scores (evaluation.py).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.evaluation import BATCH_TOKENS, View
from training.tokens import NOT_LEARNED, Tokenized

SHORT = 32
"""Tokens: longer answers are seldom the same to the letter, and take long."""


@dataclass(frozen=True, slots=True)
class RowLosses:
    """By row, in the rows' order."""

    sums: tuple[float, ...]  # nats
    counts: tuple[int, ...]  # learned tokens

    @property
    def mean(self) -> float:
        """Of a learned token; infinite after a run that diverged, so that it is never the best."""
        found = sum(self.sums) / max(1, sum(self.counts))
        return found if math.isfinite(found) else math.inf

    @property
    def by_row(self) -> tuple[float, ...]:
        """Means of each row's own tokens."""
        return tuple(one / max(1, count) for one, count in zip(self.sums, self.counts, strict=True))


@torch.no_grad()
def row_losses(view: View, rows: Sequence[Tokenized]) -> RowLosses:
    """The model is left in the mode that it was in."""
    model = view.model
    training = model.training
    model.eval()
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].input_ids))
    while order:
        size = max(1, BATCH_TOKENS // len(rows[order[0]].input_ids))
        group, order = order[:size], order[size:]
        longest = len(rows[group[0]].input_ids)
        inputs = torch.zeros(len(group), longest, dtype=torch.int64)
        labels = torch.full_like(inputs, NOT_LEARNED)
        for at, row in enumerate(group):
            ids = rows[row].input_ids
            inputs[at, : len(ids)] = torch.tensor(ids)
            labels[at, 1 : len(ids)] = torch.tensor(rows[row].labels[1:])
        inputs, wanted = inputs.to(model.device), labels[:, 1:].to(model.device)
        with view.entered():  # padding is on the right and attention causal: no mask is needed
            logits = model(input_ids=inputs).logits[:, -longest:-1]
        learned = wanted != NOT_LEARNED  # [rows, longest - 1]
        losses = torch.zeros_like(wanted, dtype=torch.float32)
        losses[learned] = torch.nn.functional.cross_entropy(
            logits[learned].float(), wanted[learned], reduction="none"
        )
        for row, one, count in zip(
            group, losses.sum(1).tolist(), learned.sum(1).tolist(), strict=True
        ):
            sums[row], counts[row] = one, count
    model.train(training)
    return RowLosses(tuple(sums), tuple(counts))


def paired_error(one: RowLosses, other: RowLosses) -> float:
    """The standard error of the difference of the two means, rows being drawn at random.

    Both are of the same rows; the linearised error of a ratio (Cochran 1977, section 2.11).
    """
    counts, rows = one.counts, len(one.counts)
    mean = one.mean - other.mean
    weight = sum(counts) / rows
    left = [
        (a - b - mean * count) / weight
        for a, b, count in zip(one.sums, other.sums, counts, strict=True)
    ]
    return math.sqrt(sum(value * value for value in left) / (rows - 1) / rows)


def short_answers(rows: Sequence[Tokenized]) -> bool:
    """Whether half of the rows at least have no more than SHORT tokens to learn."""
    return statistics.median(row.learned for row in rows) <= SHORT
