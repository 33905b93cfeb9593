"""What is searched, and what a trial's values make of the job that is asked for.

Here: SearchSpace, space_of, trial_body, published_body, words. Not here: choosing values (study.py,
by optuna), jobs.

What a request says is kept as it is said; only what it leaves open is searched. The rate is a
multiple of the one that suits the base and the method (training/plan.py), so that one range fits
every base.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from adapters_store.errors import InvalidRequest
from training.methods.fields import TAKES, default_dropout, default_rank
from training.spec import JobRequest

Params = Mapping[str, Any]
Body = dict[str, Any]

EVALS = 4
"""Of a trial's run: it can be pruned after a quarter and after half of its steps."""

DEFAULTS = 0
"""The trial that changes nothing, so that a study measures what it improves on."""

RANK, TARGETS, RATE, DROPOUT, DECAY = "log2_rank", "targets", "rate", "dropout", "weight_decay"

RANGES: dict[str, BaseDistribution] = {
    RANK: IntDistribution(2, 6),  # rank 4 to 64, in powers of two
    TARGETS: CategoricalDistribution(("all", "attention")),
    RATE: FloatDistribution(0.125, 8.0, log=True),  # of the default
    DROPOUT: FloatDistribution(0.0, 0.2),
    DECAY: FloatDistribution(0.0, 0.1),
}


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What a request leaves open."""

    ranges: Mapping[str, BaseDistribution]
    defaults: Params  # what it comes to without a search

    def suggest(self, trial: Trial) -> Params:
        """One value each; those that a trial has already stay as they are."""
        return {name: _suggest(trial, name, one) for name, one in self.ranges.items()}


def space_of(request: Body) -> SearchSpace:
    """`request` as POST /v1/fine_tuning/jobs takes it.

    Raises InvalidRequest if it leaves nothing open, and what JobRequest raises.
    """
    asked = JobRequest.model_validate(request)
    peft, options = asked.adapterd.peft, asked.adapterd
    taken = TAKES[peft.method]
    rate_said = options.learning_rate is not None or asked.hyper.learning_rate_multiplier != "auto"
    low_rank = "alpha" in taken  # others' ranks and targets have ranges of their own
    is_open = {
        RANK: low_rank and peft.rank is None,
        TARGETS: low_rank and peft.targets is None,
        RATE: not rate_said,
        DROPOUT: "dropout" in taken and peft.dropout is None,
        DECAY: "weight_decay" not in options.model_fields_set,
    }
    defaults = {
        RANK: default_rank(peft.method, 0).bit_length() - 1,
        TARGETS: "all",
        RATE: 1.0,
        DROPOUT: default_dropout(peft.method, 0),
        DECAY: 0.0,
    }
    names = [name for name in RANGES if is_open[name]]
    if not names:
        raise InvalidRequest("everything that could be searched is said already: leave some open")
    return SearchSpace(
        {name: RANGES[name] for name in names}, {name: defaults[name] for name in names}
    )


def trial_body(request: Body, number: int, params: Params) -> Body:
    """The body of a trial's job: nothing of it is published, and nothing is answered."""
    body = _with(request, {} if number == DEFAULTS else params)
    options = body["adapterd"]
    options.pop("gate", None)
    return body | {
        "adapterd": options | {"publish": False, "evals": EVALS, "eval_examples": 0},
    }


def published_body(request: Body, number: int, params: Params) -> Body:
    """The body of the same run again, published: with the same seed, it is the same to the bit.

    As many evaluations belong to that, for they draw random numbers. The name moves only if the
    new version is better than what it means by then, unless the request says another gate.
    """
    body = _with(request, {} if number == DEFAULTS else params)
    options = {"gate": {"better_than": "current"}} | body["adapterd"]
    return body | {"adapterd": options | {"publish": True, "evals": EVALS}}


def words(params: Params) -> str:
    """As a person reads them: "rank 32, attention, rate ×2.1, dropout 0.05, decay 0.01"."""
    forms = {
        RANK: lambda value: f"rank {2**value}",
        TARGETS: lambda value: "all linears" if value == "all" else "attention",
        RATE: lambda value: f"rate ×{value:.3g}",
        DROPOUT: lambda value: f"dropout {value:.3f}",
        DECAY: lambda value: f"decay {value:.3f}",
    }
    return ", ".join(form(params[name]) for name, form in forms.items() if name in params)


def values(params: Params) -> dict[str, Any]:
    """As a program reads them, with the rank itself."""
    named = {RATE: "learning_rate_multiplier"}
    found = {named.get(name, name): one for name, one in params.items() if name != RANK}
    return found | ({"rank": 2 ** params[RANK]} if RANK in params else {})


def _with(request: Body, params: Params) -> Body:
    body = deepcopy(request)
    options = body.setdefault("adapterd", {})
    peft = options.setdefault("peft", {})
    if RANK in params:
        peft["rank"] = 2 ** params[RANK]
    if params.get(TARGETS) == "attention":
        peft["targets"] = ["attention"]
    if DROPOUT in params:
        peft["dropout"] = params[DROPOUT]
    if DECAY in params:
        options["weight_decay"] = params[DECAY]
    if RATE in params:
        method = body.setdefault("method", {"type": "supervised"})
        own = method.setdefault(method["type"], {})
        own.setdefault("hyperparameters", {})["learning_rate_multiplier"] = params[RATE]
    return body


def _suggest(trial: Trial, name: str, one: BaseDistribution) -> Any:
    if isinstance(one, IntDistribution):
        return trial.suggest_int(name, one.low, one.high)
    if isinstance(one, FloatDistribution):
        return trial.suggest_float(name, one.low, one.high, log=one.log)
    assert isinstance(one, CategoricalDistribution)
    return trial.suggest_categorical(name, one.choices)
