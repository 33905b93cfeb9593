"""What `adapterd train` may be told about a job, and the request that comes of it.

Here: TrainingOptions, a field for each option; job_request. Not here: files, servers, printing.
None of an option: not said, so that whoever settles the job chooses (training/spec.py).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from server.config import SettingsError
from training.spec import Metric, PeftMethod


def _told(
    *flags: str,
    about: str,
    panel: str,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
) -> Any:
    return typer.Option(
        *flags, help=about, rich_help_panel=panel, metavar=metavar, show_default=False,
        min=min, max=max,
    )  # fmt: skip


_ADAPTER, _TRAINING, _GATE = "Adapter", "Training", "When the name moves to the new version"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """As they were typed; typer has checked the bounds."""

    name: Annotated[
        str | None,
        _told(
            "--name", "-n", panel=_ADAPTER,
            about="Adapter that the new version is of. Default: a new one, named by the server.",
        ),
    ] = None  # fmt: skip
    suffix: Annotated[
        str | None, _told("--suffix", panel=_ADAPTER, about="Part of the name that it is given.")
    ] = None
    method: Annotated[
        PeftMethod | None, _told("--method", panel=_ADAPTER, about="Kind. Default: lora.")
    ] = None
    rank: Annotated[int | None, _told("--rank", panel=_ADAPTER, min=1, about="Its rank.")] = None
    alpha: Annotated[
        float | None, _told("--alpha", panel=_ADAPTER, min=0, about="It is scaled by alpha/rank.")
    ] = None
    dropout: Annotated[
        float | None, _told("--dropout", panel=_ADAPTER, min=0, max=1, about="While training.")
    ] = None
    targets: Annotated[
        str | None,
        _told(
            "--targets", panel=_ADAPTER, metavar="NAME,…",
            about="Modules that it changes, such as q_proj,v_proj. Default: all linear ones.",
        ),
    ] = None  # fmt: skip

    dpo: Annotated[
        bool, _told("--dpo", panel=_TRAINING, about="Learn preferences: pairs of answers.")
    ] = False
    beta: Annotated[
        float | None,
        _told("--beta", panel=_TRAINING, min=0, max=2, about="DPO's: how near to the base."),
    ] = None
    epochs: Annotated[
        int | None, _told("--epochs", panel=_TRAINING, min=1, about="Times through the data.")
    ] = None
    batch_size: Annotated[
        int | None, _told("--batch-size", panel=_TRAINING, min=1, about="Examples in a step.")
    ] = None
    learning_rate: Annotated[
        float | None, _told("--learning-rate", panel=_TRAINING, min=0, about="The highest.")
    ] = None
    max_steps: Annotated[
        int | None, _told("--max-steps", panel=_TRAINING, min=1, about="No more steps than these.")
    ] = None
    seed: Annotated[
        int | None, _told("--seed", panel=_TRAINING, min=0, about="Makes the run repeatable.")
    ] = None
    holdout: Annotated[
        float | None,
        _told(
            "--holdout", panel=_TRAINING, min=0, max=0.5, metavar="SHARE",
            about="Of the data, kept to evaluate, where there is no --validation. Default: 0.05.",
        ),
    ] = None  # fmt: skip
    early_stopping: Annotated[
        int | None,
        _told(
            "--early-stopping", panel=_TRAINING, min=1, metavar="N",
            about="End after N evaluations without a better loss; the best weights are kept.",
        ),
    ] = None  # fmt: skip

    publish: Annotated[
        bool,
        _told(
            "--publish/--no-publish", panel=_GATE,
            about="Whether it becomes a version; if not, it is a file that the job leaves.",
        ),
    ] = True  # fmt: skip
    gate_metric: Annotated[
        Metric | None,
        _told("--gate-metric", panel=_GATE, about="What is compared. Default: eval_loss."),
    ] = None
    max_loss: Annotated[
        float | None, _told("--max-loss", panel=_GATE, about="If the loss is at most this.")
    ] = None
    min_score: Annotated[
        float | None,
        _told("--min-score", panel=_GATE, about="If exact match, or F1, is at least this."),
    ] = None
    better_than: Annotated[
        Literal["current", "base"] | None,
        _told(
            "--better-than", panel=_GATE,
            about="If it beats the base, or the version that the name means by then.",
        ),
    ] = None  # fmt: skip
    max_forgetting: Annotated[
        float | None,
        _told(
            "--max-forgetting", panel=_GATE, min=0, metavar="NATS",
            about="If its loss on general text grew by no more than this, in nats a token.",
        ),
    ] = None  # fmt: skip


def job_request(options: TrainingOptions) -> dict[str, Any]:
    """The body of POST /v1/fine_tuning/jobs but for the model and the files.

    Raises SettingsError for options that do not go together.
    """
    if options.beta is not None and not options.dpo:
        raise SettingsError("--beta is an option of --dpo: give both, or neither")
    if options.name is not None and options.suffix is not None:
        raise SettingsError("--suffix is part of a name that is made up: leave it out, or --name")
    kind = "dpo" if options.dpo else "supervised"
    hyper = _said(n_epochs=options.epochs, batch_size=options.batch_size, beta=options.beta)
    peft = _said(
        method=options.method,
        rank=options.rank,
        alpha=options.alpha,
        dropout=options.dropout,
        targets=None if options.targets is None else _names("--targets", options.targets),
    )
    ours = _said(
        name=options.name,
        publish=None if options.publish else False,
        peft=peft or None,
        gate=_gate(options) or None,
        learning_rate=options.learning_rate,
        max_steps=options.max_steps,
        holdout=options.holdout,
        early_stopping_patience=options.early_stopping,
    )
    return _said(
        method={"type": kind, kind: {"hyperparameters": hyper}} if hyper or options.dpo else None,
        seed=options.seed,
        suffix=options.suffix,
        adapterd=ours or None,
    )


def _gate(options: TrainingOptions) -> dict[str, Any]:
    metric = options.gate_metric
    if options.max_loss is not None and metric not in (None, "eval_loss"):
        raise SettingsError(f"--max-loss bounds the loss, not {metric}: use --min-score")
    if options.min_score is not None and metric in (None, "eval_loss"):
        raise SettingsError("--min-score: say of what, with --gate-metric exact_match or f1")
    bounds = _said(
        max=options.max_loss,
        min=options.min_score,
        better_than=options.better_than,
        max_forgetting=options.max_forgetting,
    )
    if metric is not None and not bounds:
        raise SettingsError(
            f"--gate-metric {metric} asks for nothing by itself: add --better-than current, "
            + ("--max-loss" if metric == "eval_loss" else "--min-score")
        )
    if bounds and not options.publish:
        raise SettingsError("--no-publish moves no name, so it takes none of the gate's options")
    return _said(metric=metric) | bounds


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise SettingsError(f"{flag} {text}: names are wanted, such as q_proj,v_proj")
    return names


def _said(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
