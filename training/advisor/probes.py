"""Short runs of equal budget: the same steps and batches, another method, rank or rate.

Here: Prober, Wanted. Not here: which are run (campaign.py), what is made of them (rules.py).
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from training.advisor.costs import kept_for_backward
from training.advisor.evidence import Part, Probe
from training.advisor.measure import RowLosses, row_losses, short_answers
from training.advisor.request import Probing
from training.advisor.sample import Sampled
from training.evaluation import View, answers, wanted_answers
from training.loop import Progress, train
from training.methods.trainable import Trainable, attach, detach
from training.plan import BaseShape, Plan, settle
from training.rows import batches
from training.spec import JobRequest, Options, Peft, PeftMethod
from training.tokens import Tokenized

QUARTERS = 4
"""So often the held-out loss is taken, the end among them: enough for a trend."""

UNTIMED = 2  # first steps, which warm up


@dataclass(frozen=True, slots=True)
class Wanted:
    """A probe to be run. `multiplier` is of the method's own rate (plan.py)."""

    part: Part
    method: PeftMethod
    rank: int | None = None
    multiplier: float = 1.0
    targets: tuple[str, ...] | None = None  # None: all
    modules_to_save: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        parts = [self.method]
        if self.rank is not None:
            parts.append(f"r={self.rank}")
        if self.part == "targets":
            parts.append("on attention alone")
        if self.token_ids:
            parts.append(f"+ {len(self.token_ids)} tokens")
        if self.modules_to_save:
            parts.append("+ embeddings")
        if self.multiplier != 1:
            parts.append(f"at {self.multiplier:.3g} x rate")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Ran:
    """A probe, and its held-out rows one by one, which comparisons with an error need."""

    wanted: Wanted
    probe: Probe
    losses: RowLosses
    right: tuple[bool, ...] | None  # of the first rows: whether the answer is to the letter


@dataclass(frozen=True, slots=True)
class Ground:
    """What all probes of an advice share."""

    tokenizer: PreTrainedTokenizerBase
    shape: BaseShape
    data: Sampled
    general: Sequence[Tokenized]
    options: Probing
    seed: int
    scratch: Path
    on_step: Callable[[], None]  # may raise, to end it all


@dataclass
class Prober:
    """Runs one probe after another; the base comes out of each as it went in, but of "full"."""

    ground: Ground
    rows: Dataset = field(init=False)
    base_losses: RowLosses | None = None

    def __post_init__(self) -> None:
        self.rows = self.ground.data.dataset()

    def plan(self, wanted: Wanted, *, steps: int | None = None) -> Plan:
        """As a job on the whole file would be settled, cut to the budget. Raises InvalidRequest."""
        ground = self.ground
        peft = Peft(
            method=wanted.method,
            rank=wanted.rank,
            targets=wanted.targets,
            modules_to_save=wanted.modules_to_save,
        )
        told = Options(peft=peft, max_tokens=ground.options.max_tokens)
        request = JobRequest(model="-", training_file="-", adapterd=told)
        plan = settle(
            request,
            seed=ground.seed,
            rows=ground.data.rows,
            base=ground.shape,
            tokenizer=ground.tokenizer,
        )
        steps = ground.options.probe_steps if steps is None else steps
        return replace(
            plan,
            adapter=replace(plan.adapter, trainable_token_ids=wanted.token_ids),
            steps=steps,
            batch_size=min(ground.options.batch_size or plan.batch_size, len(ground.data.train)),
            learning_rate=plan.learning_rate * wanted.multiplier,
            checkpoint_every=steps + 1,
        )

    def job_steps(self) -> int:
        """Of a job on the whole file, with its defaults."""
        request = JobRequest(model="-", training_file="-")
        shared = {"base": self.ground.shape, "tokenizer": self.ground.tokenizer}
        return settle(request, seed=0, rows=self.ground.data.rows, **shared).steps

    def batch_size(self) -> int:
        """Of every probe."""
        return self.plan(Wanted("rate", "lora")).batch_size

    def views(self, model: Any) -> tuple[RowLosses, tuple[bool, ...] | None]:
        """How a model as it is does on the held-out rows."""
        view = View(model.eval())
        held_out = self.ground.data.held_out
        return row_losses(view, held_out), self._right(view)

    def run(self, base: Any, wanted: Wanted, *, look: Callable[[Any], None] | None = None) -> Ran:
        """`look` is shown the trained model before it goes. Raises InvalidRequest."""
        plan = self.plan(wanted)
        trainable = attach(
            base,
            plan.adapter,
            seed=plan.seed,
            total_steps=plan.steps,
            batches=lambda: batches(self.rows, plan.batch_size),
        )
        try:
            return self._ran(trainable, plan, wanted, look)
        finally:
            detach(trainable)
            gc.collect()

    def _ran(
        self,
        trainable: Trainable,
        plan: Plan,
        wanted: Wanted,
        look: Callable[[Any], None] | None,
    ) -> Ran:
        ground, model = self.ground, trainable.model
        first: Mapping[str, Any] = next(iter(batches(self.rows, plan.batch_size)))
        kept = kept_for_backward(model.train(), first)
        watch = _Watch(ground, model, plan.steps)
        train(
            trainable,
            ground.tokenizer,
            plan,
            self.rows,
            None,
            folder=ground.scratch / "probe",
            watch=watch,
        )
        losses, right = self.views(model)
        if look is not None:
            look(model)
        start = [] if self.base_losses is None else [(0, self.base_losses.mean)]
        general = row_losses(View(model), ground.general).mean if ground.general else None
        probe = Probe(
            name=wanted.name,
            part=wanted.part,
            method=wanted.method,
            rank=wanted.rank,
            targets=plan.adapter.targets,
            learning_rate=plan.learning_rate,
            multiplier=wanted.multiplier,
            parameters=trainable.parameters,
            loss=losses.mean,
            curve=(*start, *watch.curve, (plan.steps, losses.mean)),
            exact_match=None if right is None else statistics.fmean(right),
            general_loss=general,
            seconds_per_step=watch.seconds_per_step,
            activation_bytes=kept,
        )
        return Ran(wanted, probe, losses, right)

    def _right(self, view: View) -> tuple[bool, ...] | None:
        """By the first rows; None where answers are long, or none are asked for."""
        ground = self.ground
        asked = ground.data.held_out[: ground.options.answered]
        if not asked or not short_answers(ground.data.held_out):
            return None
        said = answers(view, ground.tokenizer, asked)
        wanted = wanted_answers(ground.tokenizer, asked)
        return tuple(a == b for a, b in zip(said, wanted, strict=True))


class _Watch:
    """Times a probe's steps, and takes its held-out loss on the way; a loop.Watch."""

    def __init__(self, ground: Ground, model: Any, steps: int) -> None:
        self.curve: list[tuple[int, float]] = []
        self._ground = ground
        self._model = model
        self._points = {steps * quarter // QUARTERS for quarter in range(1, QUARTERS)} - {0}
        self._seconds: list[float] = []
        self._last: float | None = None

    @property
    def seconds_per_step(self) -> float:
        timed = self._seconds[UNTIMED:] or self._seconds
        return statistics.median(timed) if timed else 0.0

    def on_step(self, progress: Progress) -> bool:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        now = time.monotonic()
        if self._last is not None:
            self._seconds.append(now - self._last)
        self._ground.on_step()
        if progress.step in self._points:
            losses = row_losses(View(self._model), self._ground.data.held_out)
            self.curve.append((progress.step, losses.mean))
        self._last = time.monotonic()
        return False

    def on_eval(self, step: int, loss: float) -> None:
        """Never: the trainer is given nothing to evaluate."""

    def on_checkpoint(self, folder: Path, step: int, metrics: dict[str, Any]) -> None:
        """A probe is not gone on with."""
