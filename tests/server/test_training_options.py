"""What `adapterd train` is told becomes a request that the server's own schema takes."""

from typing import Any

import pytest

from server.config import SettingsError
from server.training_options import TrainingOptions, job_request
from training.spec import JobRequest


def asked(**options: Any) -> JobRequest:
    body = job_request(TrainingOptions(**options))
    return JobRequest.model_validate(body | {"model": "base", "training_file": "file-1"})


def test_nothing_said_is_everything_left_open() -> None:
    assert asked() == JobRequest(model="base", training_file="file-1")


def test_every_option_arrives_in_its_place() -> None:
    request = asked(
        name="sql", method="rslora", rank=8, alpha=16.0, dropout=0.1, targets="q_proj, v_proj",
        epochs=2, batch_size=4, learning_rate=1e-3, max_steps=50, seed=7, holdout=0.1,
        early_stopping=3, gate_metric="f1", min_score=0.5, better_than="current",
        max_forgetting=0.2,
    )  # fmt: skip
    ours = request.adapterd
    peft = ours.peft
    assert (peft.method, peft.rank, peft.alpha, peft.dropout) == ("rslora", 8, 16.0, 0.1)
    assert peft.targets == ("q_proj", "v_proj")
    assert (request.hyper.n_epochs, request.hyper.batch_size, request.seed) == (2, 4, 7)
    assert (ours.name, ours.learning_rate, ours.max_steps) == ("sql", 1e-3, 50)
    assert (ours.holdout, ours.early_stopping_patience, ours.publish) == (0.1, 3, True)
    assert ours.gate is not None
    assert ours.gate.model_dump(exclude_none=True) == {
        "metric": "f1", "min": 0.5, "better_than": "current", "max_forgetting": 0.2,
    }  # fmt: skip


def test_preferences_and_a_name_of_the_servers() -> None:
    request = asked(dpo=True, beta=0.3, epochs=1, suffix="polite", publish=False)
    assert request.method.type == "dpo"
    assert request.hyper.model_dump() == {
        "n_epochs": 1, "batch_size": "auto", "learning_rate_multiplier": "auto", "beta": 0.3,
    }  # fmt: skip
    assert (request.suffix, request.adapterd.publish) == ("polite", False)


def test_a_bound_of_the_loss_needs_no_metric() -> None:
    gate = asked(max_loss=1.5).adapterd.gate
    assert gate is not None
    assert (gate.metric, gate.max) == ("eval_loss", 1.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 0.1}, "--dpo"),
        ({"max_loss": 1.0, "gate_metric": "f1"}, "--min-score"),
        ({"min_score": 0.5}, "--gate-metric exact_match or f1"),
        ({"min_score": 0.5, "gate_metric": "eval_loss"}, "--gate-metric exact_match or f1"),
        ({"gate_metric": "f1"}, "--better-than current, --min-score"),
        ({"max_loss": 1.0, "publish": False}, "--no-publish"),
        ({"targets": " , "}, "--targets"),
        ({"name": "sql", "suffix": "x"}, "--suffix"),
    ],
)
def test_what_does_not_go_together_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        job_request(TrainingOptions(**options))
