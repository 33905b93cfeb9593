"""Each condition of a gate, held and failed, and what cannot be measured."""

import pytest

from training.evaluation import Scores
from training.gate import judge
from training.spec import Gate


def scores(loss: float | None = 1.0, exact: float | None = 0.5) -> Scores:
    return Scores(loss, None, exact, exact, 100, 10, None, None)


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({"max": 1.0}, True),
        ({"max": 0.99}, False),
        ({"metric": "exact_match", "min": 0.5}, True),
        ({"metric": "exact_match", "min": 0.51}, False),
        ({"better_than": "current"}, True),
        ({"better_than": "base"}, False),
        ({"metric": "exact_match", "better_than": "current"}, False),
        ({"metric": "exact_match", "better_than": "base"}, True),
        ({"max_forgetting": 0.2}, True),
        ({"max_forgetting": 0.1}, False),
        ({"max": 1.0, "max_forgetting": 0.1}, False),
        ({}, True),
    ],
)
def test_all_conditions_must_hold(gate: dict[str, object], passed: bool) -> None:
    verdict = judge(
        Gate.model_validate(gate),
        new=scores(),
        base=scores(1.0, 0.2),
        current=scores(1.1, 0.6),
        forgetting=0.15,
    )
    assert verdict.passed is passed
    assert verdict.passed == all(reason.startswith("held") for reason in verdict.reasons)


def test_a_first_version_is_better_than_none() -> None:
    gate = Gate(better_than="current")
    assert judge(gate, new=scores(), base=scores(), current=None, forgetting=None).passed


def test_what_was_not_measured_is_not_passed() -> None:
    nothing = scores(None, None)
    verdict = judge(Gate(max=1.0), new=nothing, base=nothing, current=None, forgetting=0.0)
    assert not verdict.passed
    assert "nothing was held out" in verdict.reasons[0]
    gate = Gate(max_forgetting=1.0)
    assert not judge(gate, new=scores(), base=scores(), current=None, forgetting=None).passed
    gate = Gate(better_than="base")
    assert not judge(gate, new=scores(), base=nothing, current=None, forgetting=None).passed
