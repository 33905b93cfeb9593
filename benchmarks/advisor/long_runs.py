"""The runs that a verdict is checked with: the same data and batches, many times the steps.

Here: long_runs, Long. Not here: the advice, what is made of both (command.py).

A shorter run's best rate may be too high for a longer one: each method is run at the rate that its
probe was best with, then at a third of it as long as that is better, and the best one counts.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from training.advisor.measure import row_losses
from training.advisor.probes import Ground, Prober, Wanted
from training.advisor.request import Probing
from training.advisor.sample import sampled
from training.base import BaseFolder, load_model
from training.evaluation import View

RATES = (1.0, 1 / 3, 1 / 9, 1 / 27)  # of the best probe's
PLAIN, NEW, FULL = "plain LoRA", "LoRA with tokens or embeddings", "full fine-tuning"
PARTS = {PLAIN: ("rate", "rank"), NEW: ("tokens", "embeddings"), FULL: ("full",)}


@dataclass(frozen=True, slots=True)
class Long:
    """One long run."""

    kind: str  # PLAIN, NEW or FULL
    name: str
    learning_rate: float
    steps: int
    loss: float  # held out
    exact_match: float | None


def long_runs(
    base: BaseFolder,
    content: bytes,
    report: Mapping[str, Any],
    options: Probing,
    note: Callable[[str], None],
    kept: Path,
) -> list[Long]:
    """Of each kind that the report has a probe of. `options` has the long runs' steps.

    Each is kept in the folder `kept` once it has ended, and not run again.
    """
    kept.mkdir(parents=True, exist_ok=True)
    tokenizer, shape = base.tokenizer(), base.shape()
    seed = report["budget"]["seed"]
    data = sampled(
        BytesIO(content),
        tokenizer,
        max_tokens=shape.max_tokens,
        max_examples=options.max_examples,
        held_out=options.held_out,
        seed=seed,
    )
    found = []
    with tempfile.TemporaryDirectory(prefix="adapterd-long-") as scratch:
        ground = Ground(
            tokenizer, shape, data, (), options, seed, Path(scratch), on_step=lambda: None
        )
        prober = Prober(ground)
        prober.base_losses = row_losses(View(load_model(base)), data.held_out)
        for kind, wanted in _wanted(report):
            least = math.inf
            for rate in RATES:
                one = replace(wanted, multiplier=wanted.multiplier * rate)
                run = _ran(prober, base, kind, one, kept, note)
                found.append(run)
                if run.loss > least:
                    break
                least = run.loss
    return found


def _ran(
    prober: Prober,
    base: BaseFolder,
    kind: str,
    wanted: Wanted,
    kept: Path,
    note: Callable[[str], None],
) -> Long:
    file = kept / f"{wanted.part}-{wanted.multiplier:.3g}.json"
    if not file.exists():
        probe = prober.run(load_model(base), wanted).probe
        steps = prober.ground.options.probe_steps
        run = Long(kind, probe.name, probe.learning_rate, steps, probe.loss, probe.exact_match)
        file.write_text(json.dumps(asdict(run)))
        note(f"long: {kind}: {probe.name}: {probe.loss:.4f}")
    return Long(**json.loads(file.read_text()))


def _wanted(report: Mapping[str, Any]) -> Iterator[tuple[str, Wanted]]:
    """The best probe of each kind, at its rate."""
    for kind, parts in PARTS.items():
        probes = [one for one in report["probes"] if one["part"] in parts]
        if not probes:
            continue
        best = min(probes, key=lambda one: one["loss"])
        wanted = Wanted(best["part"], best["method"], best["rank"], best["multiplier"])
        if best["part"] == "embeddings":
            wanted = replace(wanted, modules_to_save=("embed_tokens",))
        if best["part"] == "tokens":
            words = report["data"]["vocabulary"]
            ids = dict.fromkeys(one["id"] for one in (*words["untrained"], *words["rare"]))
            wanted = replace(wanted, token_ids=tuple(ids)[:256])
        yield kind, wanted


def best_of(runs: Sequence[Long], kind: str) -> Long | None:
    """The better rate's."""
    return min((one for one in runs if one.kind == kind), key=lambda one: one.loss, default=None)
