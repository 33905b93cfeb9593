"""Logits → token ids, for a whole step at once. Stateless: a row's draw depends on its own
sequence alone, so batch mates, pre-emption and restarts of the queue never change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.plan import Chunk


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The next token of one row. Log-probabilities are of the model's own distribution,
    before penalties and temperature."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry per sampled row; None where the row's logits were not finite."""

    tokens: tuple[SampledToken | None, ...]


def sample(logits: Tensor, rows: Sequence[Chunk], stops: list[frozenset[int]]) -> Sampled:
    """Chooses the token that follows each row's chunk.

    logits [samples, vocab]; `stops[row]` are the ids that would end the sequence. The order is
    vLLM's: penalties, temperature, min_p, top_k, top_p.
    """
    logits = logits.float()
    finite = (logits.amax(dim=-1) < float("inf")).tolist()  # False for NaN too; -inf is a mask
    raw = logits
    logits = _penalised(logits, rows, stops)
    chosen = logits.argmax(dim=-1)
    random = [row for row, chunk in enumerate(rows) if chunk.sequence.sampling.temperature > 0]
    if random:
        index = torch.tensor(random, device=logits.device)
        chosen[index] = _draw(logits[index], [rows[row] for row in random])
    ids = chosen.tolist()
    tops = {
        row: _logprobs(raw[row], ids[row], chunk.sequence.sampling.logprobs)
        for row, chunk in enumerate(rows)
        if chunk.sequence.sampling.logprobs is not None and finite[row]
    }
    return Sampled(
        tuple(
            tops.get(row, SampledToken(token)) if finite[row] else None
            for row, token in enumerate(ids)
        )
    )


def _penalised(logits: Tensor, rows: Sequence[Chunk], stops: list[frozenset[int]]) -> Tensor:
    """Repetition (CTRL, arXiv:1909.05858; over prompt and output), presence and frequency
    (OpenAI's; over output), and min_tokens. Copies only if a row needs it."""
    copied = False
    for row, chunk in enumerate(rows):
        s = chunk.sequence.sampling
        too_short = chunk.output_length < s.min_tokens and stops[row]
        plain = s.repetition_penalty == 1 and not s.presence_penalty and not s.frequency_penalty
        if plain and not too_short:
            continue
        if not copied:
            logits, copied = logits.clone(), True
        if s.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(chunk.text)), device=logits.device)
            values = logits[row, seen]
            factor = s.repetition_penalty
            logits[row, seen] = torch.where(values > 0, values / factor, values * factor)
        output = chunk.text[chunk.sequence.prompt_length :]
        if output and (s.presence_penalty or s.frequency_penalty):
            ids, counts = torch.tensor(output, device=logits.device).unique(return_counts=True)
            logits[row, ids] -= s.presence_penalty + s.frequency_penalty * counts
        if too_short:
            logits[row, sorted(stops[row])] = float("-inf")
    return logits


def _draw(logits: Tensor, rows: Sequence[Chunk]) -> Tensor:
    """One token per row of logits [rows, vocab], all of whose temperatures are above 0.

    The draw is the exponential race: argmax(p / e), e ~ Exp(1), which is a draw from p and
    leaves each row its own generator.
    """

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32).unsqueeze(1)

    params = [chunk.sequence.sampling for chunk in rows]
    logits = logits / column([p.temperature for p in params])
    if any(p.min_p > 0 for p in params):
        floor = column([p.min_p for p in params]).log() + logits.amax(-1, keepdim=True)
        logits = logits.masked_fill(logits < floor, float("-inf"))
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        logits = _top_k_top_p(
            logits,
            column([p.top_k or logits.shape[1] for p in params]),
            column([p.top_p for p in params]),
        )
    race = torch.stack([_exponential(logits.shape[1], chunk) for chunk in rows])
    return (logits.softmax(-1) / race.to(logits.device)).argmax(-1)


def _top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Masks all but the top_k [rows, 1] largest, then all beyond the mass of top_p [rows, 1]."""
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    ordered = ordered.masked_fill(rank >= top_k, float("-inf"))
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass  # of the tokens ahead; the first is always kept
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter_(1, index, ordered)


def _exponential(vocab: int, row: Chunk) -> Tensor:
    """Exp(1) noise [vocab] that depends on the sequence's seed and position alone."""
    generator = torch.Generator()
    generator.manual_seed((row.sequence.seed * 1_000_003 + row.output_length) % (1 << 63))
    noise = torch.empty(vocab).exponential_(generator=generator)
    return noise.clamp_min_(torch.finfo(torch.float32).tiny)


def _logprobs(logits: Tensor, token: int, top: int) -> SampledToken:
    """logits [vocab] → the token's log-probability and the `top` largest."""
    logprobs = logits.log_softmax(-1)
    values, ids = logprobs.topk(min(top, logprobs.shape[0]))
    pairs = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return SampledToken(token, float(logprobs[token]), pairs)
