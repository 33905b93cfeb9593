"""Logits → token ids, for a whole step at once. Stateless: a row's draw depends on its own
sequence alone, so batch mates, pre-emption and restarts of the queue never change it.

Rows are dealt with in groups that want the same, each by a few operations over [rows, vocab]; a
row that is greedy and wants nothing else costs one pass over its logits.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from server.engine.plan import Chunk

INFINITY = float("inf")


class SampledToken(NamedTuple):
    """The next token of one row. Log-probabilities are of the model's own distribution,
    before penalties and temperature.

    A NamedTuple, since every row has one: a frozen dataclass takes thrice as long to make.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """One entry per sampled row; None where the row's logits were not finite."""

    tokens: tuple[SampledToken | None, ...]


def sample(logits: Tensor, rows: Sequence[Chunk]) -> Sampled:
    """Chooses the token that follows each row's chunk.

    logits [rows, vocab] of any float dtype; not written to. The order is vLLM's: penalties,
    temperature, min_p, top_k, top_p.
    """
    ids = _argmax(logits)
    largest = [value for (value,) in logits.gather(1, ids.unsqueeze(1)).tolist()]
    changed, random = [], []
    with_logprobs: defaultdict[int, list[int]] = defaultdict(list)
    for row, chunk in enumerate(rows):
        sampling = chunk.sequence.sampling
        if sampling.temperature > 0:
            random.append(row)
        elif _is_penalised(chunk):
            changed.append(row)
        if sampling.logprobs is not None and largest[row] < INFINITY:
            with_logprobs[sampling.logprobs].append(row)
    if changed:
        index = torch.tensor(changed, device=logits.device)
        ids[index] = _argmax(_penalised(logits[index].float(), [rows[row] for row in changed]))
    if random:
        index = torch.tensor(random, device=logits.device)
        chunks = [rows[row] for row in random]
        ids[index] = _draw(_penalised(logits[index].float(), chunks), chunks)
    tokens = [
        SampledToken(token) if value < INFINITY else None  # None for NaN too; -inf is a mask
        for token, value in zip(ids.tolist(), largest, strict=True)
    ]
    # In groups that want as many, for which of several equal ones are named depends on it.
    for top, group in with_logprobs.items():
        index = torch.tensor(group, device=logits.device)
        for row, told in zip(group, _told(logits[index].float(), ids[index], top), strict=True):
            tokens[row] = told
    return Sampled(tuple(tokens))


def _argmax(x: Tensor) -> Tensor:
    """Where each row of x [rows, vocab] is largest, at first if several times; NaN counts as
    largest. On the CPU numpy needs a tenth of torch's time, and a copy of bfloat16 is well spent.
    """
    if x.device.type == "cpu":
        return torch.from_numpy(x.float().numpy().argmax(-1))
    return x.argmax(-1)


def _is_penalised(chunk: Chunk) -> bool:
    s = chunk.sequence.sampling
    return (
        s.repetition_penalty != 1
        or s.presence_penalty != 0
        or s.frequency_penalty != 0
        or (s.min_tokens > 0 and chunk.output_length < s.min_tokens)
    )


def _penalised(logits: Tensor, rows: Sequence[Chunk]) -> Tensor:
    """Repetition (CTRL, arXiv:1909.05858; over prompt and output), presence and frequency
    (OpenAI's; over output), and min_tokens. logits [rows, vocab] float32: written to, returned.
    """
    repeated, present, banned = [], [], []
    for row, chunk in enumerate(rows):
        s = chunk.sequence.sampling
        if s.repetition_penalty != 1:
            repeated.append((row, chunk.text, s.repetition_penalty, 0.0))
        if s.presence_penalty or s.frequency_penalty:
            output = chunk.text[chunk.sequence.prompt_length :]
            present.append((row, output, s.presence_penalty, s.frequency_penalty))
        if chunk.output_length < s.min_tokens:
            banned.append((row, list(chunk.sequence.stop_ids), 0.0, 0.0))
    # A token that occurs twice is written twice, with the same value.
    if repeated:
        places, factor, _ = _places(repeated, logits.device)
        values = logits[places]
        logits[places] = torch.where(values > 0, values / factor, values * factor)
    if present:
        places, presence, frequency = _places(present, logits.device)
        logits[places] = logits[places] - presence
        logits.index_put_(places, -frequency, accumulate=True)
    if banned:
        logits[_places(banned, logits.device)[0]] = -INFINITY
    return logits


def _places(
    entries: Sequence[tuple[int, list[int], float, float]], device: torch.device
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """(row, token ids, two values) of several rows → ((rows, ids), values, values), [ids] each."""
    rows, lists, first, second = zip(*entries, strict=True)
    counts = np.array([len(ids) for ids in lists])
    flat: list[int] = []
    for ids in lists:
        flat += ids

    def repeated(values: Sequence[float], dtype: type) -> Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype), counts)).to(device)

    places = repeated(rows, np.int64), torch.from_numpy(np.array(flat, np.int64)).to(device)
    return places, repeated(first, np.float32), repeated(second, np.float32)


def _draw(logits: Tensor, rows: Sequence[Chunk]) -> Tensor:
    """One token per row of logits [rows, vocab] float32, which are written to; all of the rows'
    temperatures are above 0.

    The draw is the exponential race: argmax(p / e), e ~ Exp(1), which is a draw from p and
    leaves each row its own generator.
    """

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32).unsqueeze(1)

    params = [chunk.sequence.sampling for chunk in rows]
    logits /= column([p.temperature for p in params])
    if any(p.min_p > 0 for p in params):
        floor = column([p.min_p for p in params]).log() + logits.amax(-1, keepdim=True)
        logits.masked_fill_(logits < floor, -INFINITY)
    cut = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1]
    if cut:
        vocab = logits.shape[1]
        index = torch.tensor(cut, device=logits.device)
        top_k = [min(params[row].top_k or vocab, vocab) for row in cut]
        top_p = column([params[row].top_p for row in cut])
        kept = torch.tensor(top_k, device=logits.device).unsqueeze(1)
        logits[index] = _top_k_top_p(logits[index], kept, top_p)
    return _argmax(logits.softmax(-1) / _exponential(logits.shape[1], rows).to(logits.device))


def _top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Masks all but the top_k [rows, 1] largest, then all beyond the mass of top_p [rows, 1].

    logits [rows, vocab]: written to, returned. Of equal ones those of lower ids are kept first.
    """
    ordered = _descending(logits)
    mass = (ordered - ordered[:, :1]).exp_()
    total = mass.cumsum(-1)  # up to each, itself included
    ahead = total - mass
    within = (ahead < top_p * total.gather(1, top_k - 1)).sum(-1, keepdim=True)
    kept = torch.where(top_p < 1, within.clamp_min(1).minimum(top_k), top_k)
    least = ordered.gather(1, kept - 1)
    out = logits < least
    surplus = (logits.shape[1] - out.sum(-1, keepdim=True) - kept).squeeze(1)
    for row in surplus.nonzero().flatten().tolist():
        equal = (logits[row] == least[row]).nonzero().flatten()
        out[row, equal[-int(surplus[row]) :]] = True
    return logits.masked_fill_(out, -INFINITY)


def _descending(x: Tensor) -> Tensor:
    """x [rows, vocab] float32, each row in order. On the CPU numpy is thirty times as fast."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.numpy(), axis=-1)).flip(-1)
    return x.sort(dim=-1, descending=True).values


def _exponential(vocab: int, rows: Sequence[Chunk]) -> Tensor:
    """Exp(1) noise [rows, vocab] float32; a row's depends on its seed and position alone."""
    uniform = np.empty((len(rows), vocab))  # float64: few of 2^53 values are ever drawn twice
    for own, chunk in zip(uniform, rows, strict=True):
        entropy = [chunk.output_length, chunk.sequence.seed % (1 << 64)]
        np.random.Generator(np.random.SFC64(entropy)).random(out=own)
    noise = (1 - torch.from_numpy(uniform)).log_().neg_().float()
    return noise.clamp_min_(torch.finfo(torch.float32).tiny)


def _told(logits: Tensor, ids: Tensor, top: int) -> list[SampledToken]:
    """Each row's token of `ids` [rows], its log-probability, and the `top` likeliest tokens'.

    logits [rows, vocab] float32.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)
    values, others = logprobs.topk(min(top, logits.shape[1]))
    return [
        SampledToken(token, logprob, tuple(zip(likeliest, theirs, strict=True)))
        for token, logprob, likeliest, theirs in zip(
            ids.tolist(), own.tolist(), others.tolist(), values.tolist(), strict=True
        )
    ]
