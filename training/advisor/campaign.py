"""Which probes are run, in which order, and what of them is kept as evidence.

Here: measured, Measured. Not here: one probe (probes.py), what is made of them (rules.py).

Rates: LoRA's and the full fine-tune's are searched for, in steps of 3, until the best one lies
between two that are worse or RATES have been tried: a verdict must not hang on one rate. LoRA's
best rate hardly depends on the rank ("LoRA Without Regret", Schulman et al. 2025), so that all
ranks, and what differs from LoRA little, take it over; the best of those has it searched again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from adapters_store.errors import InvalidRequest
from training.advisor.costs import available_bytes, full_bytes
from training.advisor.evidence import Difference, Evidence, Memory, Spectrum, Vocabulary
from training.advisor.groups import difference
from training.advisor.measure import RowLosses, paired_error, row_losses
from training.advisor.probes import Prober, Ran, Wanted
from training.advisor.spectrum import before, spectrum
from training.advisor.vocabulary import trainable_ids, vocabulary
from training.evaluation import View

RANKS = (4, 16, 64)
SMALL = 8
"""A rank is at most the narrowest module's smaller side over this: at that, LoRA trains a quarter
as much as the module has, and is no small adapter any more."""
RATES = 5
STEP = 3.0
MOST_PROBES = 20
"""That an advice runs, each search at its longest."""

ROOM = 0.8
"""Of the memory that is free: a probe of full fine-tuning takes no more."""


@dataclass(frozen=True, slots=True)
class Base:
    """The base before any probe."""

    losses: RowLosses
    right: tuple[bool, ...] | None
    general_loss: float | None
    vocabulary: Vocabulary
    bytes: int
    parameters: int
    embedding: str  # the leaf name of the input embeddings
    attention: tuple[str, ...]  # leaf names of linear modules
    linears: tuple[str, ...]  # paths of linear modules but for the head
    narrowest: int  # the smallest side of those


@dataclass(frozen=True, slots=True)
class Measured:
    base: Base
    evidence: Evidence
    token_ids: tuple[int, ...]  # that the tokens' probe trained


def measured(
    prober: Prober, load: Callable[[], Any], note: Callable[[str], None] = lambda _: None
) -> Measured:
    """`load` gives the base, fresh; it is called again for each probe of full fine-tuning.

    Raises what the ground's on_step does.
    """
    model = load()
    base, free = _base(prober, model), available_bytes(model.device)
    prober.base_losses = base.losses
    note(f"The base has a held-out loss of {base.losses.mean:.4f}.")
    runs = _Runs(prober, note)
    _adapters(runs, model, base)
    best = min(runs.done, key=lambda one: one.probe.loss)
    activations = max(one.probe.activation_bytes for one in runs.done)
    left_out = _full_left_out(prober, model, activations)
    del model
    spread: Spectrum | None = None
    gap_error: float | None = None
    if left_out is None:
        full, spread = _full(runs, load, base)
        gap_error = paired_error(best.losses, full.losses)
    else:
        note(f"Full fine-tuning is not probed: {left_out}.")
    evidence = Evidence(
        base_loss=base.losses.mean,
        general_loss=base.general_loss,
        exact_match=_share(base.right),
        vocabulary=base.vocabulary,
        probes=tuple(one.probe for one in runs.done),
        spectrum=spread,
        full_left_out=left_out,
        gap_error=gap_error,
        groups=_groups(prober, base, best),
        memory=Memory(base.bytes, base.parameters, free),
    )
    return Measured(base, evidence, trainable_ids(base.vocabulary))


class _Runs:
    """Runs probes and keeps them."""

    def __init__(self, prober: Prober, note: Callable[[str], None]) -> None:
        self.done: list[Ran] = []
        self._prober = prober
        self._note = note

    def run(
        self, model: Any, wanted: Wanted, look: Callable[[Any], None] | None = None
    ) -> Ran | None:
        """None, and a note, if the base does not take it."""
        try:
            ran = self._prober.run(model, wanted, look=look)
        except InvalidRequest as refused:
            self._note(f"{wanted.name} is left out: {refused.message}")
            return None
        self.done.append(ran)
        self._note(f"{wanted.name}: held-out loss {ran.probe.loss:.4f}.")
        return ran

    def search(
        self,
        load: Callable[[], Any],
        wanted: Wanted,
        most: int = RATES,
        look: Callable[[Any], None] | None = None,
    ) -> Ran | None:
        """The best of up to `most` rates around that of `wanted`, which may have run already."""
        known = next((one for one in self.done if one.wanted == wanted), None)
        tried: dict[int, Ran] = {} if known is None else {0: known}  # by the power of STEP
        while len(tried) < most:
            power = next_power({at: one.probe.loss for at, one in tried.items()})
            if power is None:
                break
            rate = wanted.multiplier * STEP**power
            ran = self.run(load(), replace(wanted, multiplier=rate), look)
            if ran is None:
                break
            tried[power] = ran
        return min(tried.values(), key=lambda one: one.probe.loss, default=None)


def next_power(losses: dict[int, float]) -> int | None:
    """Where to look next, from losses by a whole power; None once the best lies within.

    Upwards first: the higher rate is the cheaper one to be wrong about in a short run.
    """
    if not losses:
        return 0
    best = min(losses, key=lambda at: losses[at])
    return next((at for at in (best + 1, best - 1) if at not in losses), None)


def _adapters(runs: _Runs, model: Any, base: Base) -> None:
    """Everything but full fine-tuning."""
    ranks = [rank for rank in RANKS if rank * SMALL <= base.narrowest] or [1]
    middle = min(ranks, key=lambda rank: abs(rank - 16))
    lora = runs.search(lambda: model, Wanted("rate", "lora", middle))
    assert lora is not None, "every base takes LoRA"
    shared = lora.wanted
    for rank in ranks:
        if rank != middle:
            runs.run(model, replace(shared, part="rank", rank=rank))
    runs.run(model, replace(shared, part="variant", method="dora", rank=ranks[0]))
    if base.attention:
        runs.run(model, replace(shared, part="targets", targets=base.attention))
    tokens = trainable_ids(base.vocabulary)
    if tokens:
        runs.run(model, replace(shared, part="tokens", token_ids=tokens))
    runs.run(model, replace(shared, part="embeddings", modules_to_save=(base.embedding,)))
    runs.search(lambda: model, Wanted("prompt", "prompt-tuning"), most=2)
    # What is held against full fine-tuning has a rate of its own choosing too.
    best = min(runs.done, key=lambda one: one.probe.loss)
    if best.wanted.part not in ("rate", "prompt"):
        runs.search(lambda: model, best.wanted, most=3)


def _full(runs: _Runs, load: Callable[[], Any], base: Base) -> tuple[Ran, Spectrum]:
    """At its best rate, and the spectrum of the changes there."""
    model = load()
    old = before(model, base.linears)
    del model
    found: list[Spectrum] = []
    before_full = len(runs.done)
    best = runs.search(
        load, Wanted("full", "full"), look=lambda trained: found.append(spectrum(trained, old))
    )
    assert best is not None, "every base takes full fine-tuning"
    return best, found[runs.done[before_full:].index(best)]


def _full_left_out(prober: Prober, model: Any, activations: int) -> str | None:
    """Why full fine-tuning cannot be probed; None: it can."""
    if not prober.ground.options.full:
        return "it was not asked for"
    needed, free = full_bytes(model, activations), available_bytes(model.device)
    if free is None or needed <= ROOM * free:
        return None
    return f"it takes some {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def _base(prober: Prober, model: Any) -> Base:
    ground = prober.ground
    losses, right = prober.views(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    attention = {_leaf(path) for path in linears if "attn" in path or "attention" in path}
    parameters = list(model.parameters())
    return Base(
        losses=losses,
        right=right,
        general_loss=row_losses(View(model), ground.general).mean if ground.general else None,
        vocabulary=vocabulary(ground.tokenizer, embedding.weight, ground.data.all, ground.general),
        bytes=sum(one.numel() * one.element_size() for one in parameters),
        parameters=sum(one.numel() for one in parameters),
        embedding=next(_leaf(path) for path, one in model.named_modules() if one is embedding),
        # Names that are used elsewhere too do not say which modules are meant.
        attention=tuple(
            sorted(attention - {_leaf(path) for path in linears if "mlp" in path})
            if len(attention) < len(ground.shape.linears)
            else ()
        ),
        linears=tuple(linears),
        narrowest=min(min(one.weight.shape) for one in linears.values()),
    )


def _groups(prober: Prober, base: Base, best: Ran) -> tuple[Difference, ...]:
    names, seed = prober.ground.data.groups, prober.ground.seed
    found = (
        difference("base", names, base.losses.by_row, base.right, seed=seed),
        difference(best.wanted.name, names, best.losses.by_row, best.right, seed=seed),
    )
    return tuple(one for one in found if one is not None)


def _share(right: tuple[bool, ...] | None) -> float | None:
    return None if right is None else sum(right) / len(right)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]
