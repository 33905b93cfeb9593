"""Corpus BLEU against several references each, by sacrebleu, which names what it computed."""

from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU

from benchmarks.e2e_nlg.data import Facts


@dataclass(frozen=True, slots=True)
class Score:
    """BLEU from 0 to 100 and sacrebleu's signature: tokenizer, smoothing, version."""

    bleu: float
    signature: str


def score(answers: Sequence[str], facts: Sequence[Facts]) -> Score:
    """The answers' score; `facts[i].references` are what `answers[i]` is held against."""
    most = max(len(one.references) for one in facts)
    streams = [
        [one.references[rank] if rank < len(one.references) else None for one in facts]
        for rank in range(most)
    ]
    metric = BLEU()
    value = metric.corpus_score(list(answers), streams)  # type: ignore[arg-type]  # None: no more
    return Score(round(value.score, 2), str(metric.get_signature()))
