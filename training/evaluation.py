"""How good a model is on held-out rows: loss, perplexity, answers, and how far from the base.

Here: View, Scores, loss, divergence, answers, score. Not here: which models are compared (run.py).

Exact match and F1 are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250) but that nothing is lowered
or stripped besides white space at the ends: an adapter is to answer exactly.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.rows import padded
from training.tokens import NOT_LEARNED, Tokenized

BATCH_TOKENS = 4096
"""Of one forward pass, padding counted."""

ANSWERED_AT_ONCE = 32

MORE_TOKENS = 8
"""An answer may be so much longer than the one wanted; what goes on longer is wrong anyway."""


@dataclass(frozen=True, slots=True)
class View:
    """A model as it is within a context: PEFT's, with its adapter or with that disabled."""

    model: Any
    entered: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one model. Losses and KL are means over learned tokens, in nats.

    Of a classifier: the loss is a mean over texts, exact match the share of right classes, F1 the
    mean of the classes' own, and tokens those that were read.
    """

    eval_loss: float | None
    perplexity: float | None
    exact_match: float | None  # share of answers, 0 to 1
    f1: float | None
    tokens: int  # learned ones
    examples: int  # rows
    general_loss: float | None  # on text that is not the job's
    kl_from_base: float | None  # KL(model || base) over the learned tokens

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def loss(view: View, rows: Sequence[Tokenized]) -> float | None:
    """The mean loss, or None without rows."""
    total, count = 0.0, 0
    for inputs, labels in _batches(rows, view.model.device):
        log_probs = _log_probs(view, inputs, labels)
        wanted = labels[labels != NOT_LEARNED]
        total -= log_probs.gather(1, wanted[:, None]).sum().item()
        count += len(wanted)
    return total / count if count else None


@torch.no_grad()
def divergence(view: View, base: View, rows: Sequence[Tokenized]) -> float | None:
    """KL(view || base), the mean over learned positions; None without rows."""
    total, count = 0.0, 0
    for inputs, labels in _batches(rows, view.model.device):
        own = _log_probs(view, inputs, labels)
        others = _log_probs(base, inputs, labels)
        total += (own.exp() * (own - others)).sum().item()
        count += len(own)
    return total / count if count else None


@torch.no_grad()
def answers(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tokenized],
    *,
    more_tokens: int = MORE_TOKENS,
) -> list[str]:
    """What the model says, greedily, where each row has its last answer.

    Each may be `more_tokens` longer than the longest one wanted of those asked with it.
    """
    found: dict[int, str] = {}
    split = [_last_answer(row) for row in rows]
    padding: Any = tokenizer.pad_token_id
    for group in _alike([len(prompt) for prompt, _ in split]):
        inputs = torch.tensor([split[at][0] for at in group], device=view.model.device)
        wanted = max(len(split[at][1]) for at in group)
        with view.entered():
            said = view.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=wanted + more_tokens,
                do_sample=False,
                pad_token_id=padding,
            )
        for at, ids in zip(group, said[:, inputs.shape[1] :], strict=True):
            found[at] = _text(tokenizer, ids.tolist())
    return [found[at] for at in range(len(rows))]


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of the same length, ANSWERED_AT_ONCE at most.

    Padding before a prompt would come between it and the virtual tokens of a soft prompt.
    """
    by_length: dict[int, list[int]] = {}
    for at, length in enumerate(lengths):
        by_length.setdefault(length, []).append(at)
    for places in by_length.values():
        for start in range(0, len(places), ANSWERED_AT_ONCE):
            yield places[start : start + ANSWERED_AT_ONCE]


def wanted_answers(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokenized]) -> list[str]:
    """What each row's last answer should be."""
    return [_text(tokenizer, _last_answer(row)[1]) for row in rows]


def exact_match(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The share that is the same."""
    return sum(a == b for a, b in zip(said, wanted, strict=True)) / len(wanted)


def f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    """The mean over answers of the harmonic mean of precision and recall of their words."""
    return sum(map(_f1, said, wanted)) / len(wanted)


def score(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Tokenized],
    *,
    general: Sequence[Tokenized],
    answered: int,
    base: View | None = None,
) -> Scores:
    """All of it; the first `answered` rows are answered. Without `base` there is no KL."""
    own = loss(view, held_out)
    asked = held_out[:answered]
    said = answers(view, tokenizer, asked)
    wanted = wanted_answers(tokenizer, asked)
    return Scores(
        eval_loss=own,
        perplexity=None if own is None else math.exp(min(own, 700.0)),
        exact_match=exact_match(said, wanted) if asked else None,
        f1=f1(said, wanted) if asked else None,
        tokens=sum(row.learned for row in held_out),
        examples=len(held_out),
        general_loss=loss(view, general),
        kl_from_base=None if base is None else divergence(view, base, held_out),
    )


def _batches(rows: Sequence[Tokenized], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """input_ids and labels, both [rows, longest], padded on the right, rows of like length."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    while ordered:
        size = max(1, BATCH_TOKENS // len(ordered[-1].input_ids))
        batch, ordered = padded(ordered[-size:]), ordered[:-size]
        labels = batch["labels"]
        labels[:, 0] = NOT_LEARNED  # nothing predicts the first token
        yield batch["input_ids"].to(device), labels.to(device)


def _log_probs(view: View, inputs: Tensor, labels: Tensor) -> Tensor:
    """[learned tokens, vocabulary], float32, at the positions that predict them.

    Padding is on the right and attention causal, so that no mask is needed.
    """
    with view.entered():
        logits = view.model(input_ids=inputs).logits
    logits = logits[:, -inputs.shape[1] :]  # without virtual tokens
    return logits[:, :-1][labels[:, 1:] != NOT_LEARNED].float().log_softmax(-1)


def _last_answer(row: Tokenized) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens before the last run of learned ones, and that run."""
    end = len(row.labels)
    while row.labels[end - 1] == NOT_LEARNED:
        end -= 1
    start = end
    while start and row.labels[start - 1] != NOT_LEARNED:
        start -= 1
    return row.input_ids[:start], row.input_ids[start:end]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def _f1(said: str, wanted: str) -> float:
    one, other = Counter(said.split()), Counter(wanted.split())
    common = (one & other).total()
    if not common:
        return float(one == other)
    return 2 * common / (one.total() + other.total())
