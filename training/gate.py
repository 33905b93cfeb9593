"""Whether a new version is good enough for its name to mean it.

Here: judge, Verdict. Not here: scores (evaluation.py), moving names (run.py).
"""

from dataclasses import dataclass
from typing import Any

from training.evaluation import Scores
from training.spec import Gate


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]  # of each condition, in words

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, "reasons": list(self.reasons)}


def judge(
    gate: Gate,
    *,
    new: Scores,
    base: Scores | None,
    current: Scores | None,
    forgetting: float | None,
) -> Verdict:
    """All conditions must hold. A score that could not be taken fails what asks for it."""
    value = getattr(new, gate.metric)
    checks: list[tuple[bool, str]] = []
    if value is None:
        return Verdict(False, (f"{gate.metric} could not be measured: nothing was held out",))
    shown = f"{gate.metric} {value:.4g}"
    if gate.max is not None:
        checks.append((value <= gate.max, f"{shown}, at most {gate.max:g} wanted"))
    if gate.min is not None:
        checks.append((value >= gate.min, f"{shown}, at least {gate.min:g} wanted"))
    if gate.better_than is not None:
        other = base if gate.better_than == "base" else current
        checks.append(_better(gate, value, other))
    if gate.max_forgetting is not None:
        checks.append(_forgetting(forgetting, gate.max_forgetting))
    return Verdict(
        all(held for held, _ in checks),
        tuple(("held: " if held else "failed: ") + told for held, told in checks),
    )


def _better(gate: Gate, value: float, other: Scores | None) -> tuple[bool, str]:
    if other is None:
        return True, "there is no current version to be better than"
    than = getattr(other, gate.metric)
    if than is None:
        return False, f"{gate.metric} of the {gate.better_than} could not be measured"
    better = value < than if gate.lower_is_better else value > than
    return better, f"{gate.metric} {value:.4g}, the {gate.better_than}'s is {than:.4g}"


def _forgetting(forgetting: float | None, limit: float) -> tuple[bool, str]:
    if forgetting is None:
        return False, "forgetting could not be measured: the base has no token to begin text with"
    return (
        forgetting <= limit,
        f"forgetting {forgetting:.4g} nats a token, at most {limit:g} wanted",
    )
