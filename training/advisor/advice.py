"""One advice from a file of examples to a report: measures, judges, estimates.

Here: advise, Listener, advice_files. Not here: each of these; jobs, commands.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from training.advisor.campaign import Measured, measured
from training.advisor.costs import cost
from training.advisor.evidence import Probe
from training.advisor.page import page
from training.advisor.probes import Ground, Prober
from training.advisor.request import Probing
from training.advisor.rules import Verdict, judge
from training.advisor.sample import sampled
from training.base import BaseFolder, load_model
from training.general_text import sample
from training.jobs import storable
from training.publishable import unserved
from training.spec import Peft

NOTE = (
    "The rate is the best within the probes' budget; a job of several times the steps may want a "
    "third of it."
)
MAX_TOLD = 256
"""Tokens that are named in a report, and that a job takes."""


class Listener(Protocol):
    """Who hears of an advice under way. What is raised here ends it and reaches the caller."""

    def on_step(self) -> None:
        """After each optimizer step of any probe."""
        ...

    def note(self, message: str) -> None: ...


def advise(
    base: BaseFolder,
    file: BinaryIO,
    options: Probing,
    *,
    seed: int,
    listener: Listener,
    field: str = "training_file",
) -> dict[str, Any]:
    """The report, which is JSON: verdict, recommendation, findings, evidence.

    `file` stands at its start. Raises InvalidDataset (param `field`), OSError, and what the
    listener does.
    """
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    began = time.monotonic()
    tokenizer, shape = base.tokenizer(), base.shape()
    data = sampled(
        file,
        tokenizer,
        max_tokens=min(options.max_tokens or shape.max_tokens, shape.max_tokens),
        max_examples=options.max_examples,
        held_out=options.held_out,
        seed=seed,
        field=field,
    )
    listener.note(
        f"{len(data.train)} examples to probe on, {len(data.held_out)} held out, of {data.rows}."
    )
    general = sample(load_model(base, options.dtype), tokenizer)
    with tempfile.TemporaryDirectory(prefix="adapterd-advice-") as scratch:
        ground = Ground(
            tokenizer=tokenizer,
            shape=shape,
            data=data,
            general=general,
            options=options,
            seed=seed,
            scratch=Path(scratch),
            on_step=listener.on_step,
        )
        prober = Prober(ground)
        found = measured(prober, lambda: load_model(base, options.dtype), listener.note)
    verdict = judge(found.evidence)
    listener.note(verdict.summary)
    return storable(
        _report(prober, found, verdict, tokenizer)
        | {"base": base.name, "seconds": round(time.monotonic() - began, 1)}
    )


def advice_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """File names' endings and contents: report.json, report.html."""
    return {
        "report.json": json.dumps(report, indent=2).encode(),
        "report.html": page(report).encode(),
    }


def _report(
    prober: Prober, found: Measured, verdict: Verdict, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    ground, evidence = prober.ground, found.evidence
    words = asdict(evidence.vocabulary)
    for name in ("untrained", "rare"):
        words[name] = _told(tokenizer, words[name][:MAX_TOLD])
    return {
        "kind": "advice",
        "verdict": verdict.kind,
        "summary": verdict.summary,
        "recommendation": _recommendation(found, verdict.choice, tokenizer),
        "gap": verdict.gap,
        "gap_error": evidence.gap_error,
        "findings": [asdict(one) for one in verdict.findings],
        "data": {
            "rows": ground.data.rows,
            "tokens": ground.data.tokens,
            "longest": ground.data.longest,
            "probed_on": len(ground.data.train),
            "held_out": len(ground.data.held_out),
            "base_loss": evidence.base_loss,
            "general_loss": evidence.general_loss,
            "exact_match": evidence.exact_match,
            "vocabulary": words,
        },
        "budget": {
            "probe_steps": ground.options.probe_steps,
            "batch_size": prober.batch_size(),
            "seed": ground.seed,
        },
        "probes": [asdict(one) | _costs(prober, found, one) for one in evidence.probes],
        "spectrum": None
        if evidence.spectrum is None
        else asdict(evidence.spectrum) | {"share": evidence.spectrum.share},
        "full_left_out": evidence.full_left_out,
        "groups": [asdict(one) for one in evidence.groups],
    }


def _recommendation(
    found: Measured, choice: Probe | None, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any] | None:
    """What a job would be asked for, as the field `adapterd` of its body."""
    if choice is None:
        return None
    peft: dict[str, Any] = {"method": choice.method}
    if choice.rank is not None:
        peft |= {"rank": choice.rank, "targets": list(choice.targets)}
    if choice.part == "embeddings":
        peft["modules_to_save"] = [found.base.embedding]
    if choice.part == "tokens":
        named = _texts(tokenizer, found.token_ids)
        if len(named) == len(found.token_ids):
            peft["trainable_tokens"] = named
        else:  # some cannot be named, being no text by themselves
            peft["modules_to_save"] = [found.base.embedding]
    options: dict[str, Any] = {"peft": peft, "learning_rate": choice.learning_rate}
    # A tuple is what the model takes; only the question is asked of it.
    if unserved(Peft.model_validate(peft)) is not None:
        options["publish"] = False
    return {
        "probe": choice.name,
        "job": {"adapterd": options},
        "served": "publish" not in options,
        "note": NOTE,
    }


def _costs(prober: Prober, found: Measured, probe: Probe) -> dict[str, Any]:
    """Of a job with this method on the whole file."""
    estimate = cost(
        probe,
        base_bytes=found.base.bytes,
        base_parameters=found.base.parameters,
        steps=prober.job_steps(),
    )
    return {"estimate": asdict(estimate)}


def _texts(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[str]:
    """Those of the tokens that are one token again when their text is read, as text."""
    found = []
    for one in ids:
        text = tokenizer.decode([one])
        if isinstance(text, str) and tokenizer.encode(text, add_special_tokens=False) == [one]:
            found.append(text)
    return found


def _told(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"id": one, "token": token}
        for one, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
    ]
