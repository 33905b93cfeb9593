"""What a job may ask, and what it is told where it asks what does not go together."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from adapters_store.errors import InvalidRequest
from training.methods.fields import CLASSIFIES, check_options
from training.spec import JobRequest, PeftMethod, Teacher

JOB = "ftjob-" + "0" * 24


def asked(method: str = "supervised", **options: Any) -> JobRequest:
    body = {"model": "b", "training_file": "file-1", "method": {"type": method}}
    return JobRequest.model_validate(body | {"adapterd": options})


def test_a_teacher_has_defaults() -> None:
    assert asked(teacher={"job": JOB}).adapterd.teacher == Teacher(
        job=JOB, weight=0.5, temperature=1.0
    )
    assert asked().adapterd.teacher is None


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({}, "say whose"),
        ({"job": JOB, "name": "big"}, "say whose"),
        ({"job": "ftjob-1"}, "pattern"),
        ({"name": "/etc/models"}, "pattern"),
        ({"name": "../big"}, "pattern"),
        ({"name": "big", "weight": 1.5}, "less than or equal to 1"),
        ({"name": "big", "weight": -0.1}, "greater than or equal to 0"),
        ({"name": "big", "temperature": 0}, "greater than 0"),
        ({"path": "big"}, "Extra inputs"),
    ],
)
def test_a_teacher_that_is_none(teacher: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        asked(teacher=teacher)


def test_a_teacher_teaches_next_tokens_of_one_example_a_row() -> None:
    with pytest.raises(InvalidRequest, match="preferences") as refused:
        asked("dpo", teacher={"name": "big"})
    assert refused.value.param == "adapterd.teacher"
    with pytest.raises(InvalidRequest, match="as one text") as refused:
        asked(teacher={"name": "big"}, packing=True)
    assert refused.value.param == "adapterd.packing"


@pytest.mark.parametrize(
    ("param", "more"),
    [
        ("method.type", {"method": "dpo"}),
        ("adapterd.packing", {"packing": True}),
        ("adapterd.teacher", {"teacher": {"name": "big"}}),
        ("adapterd.general_file", {"general_file": "file-2"}),
        ("adapterd.gate.better_than", {"gate": {"better_than": "base"}}),
        ("adapterd.gate.max_forgetting", {"gate": {"max_forgetting": 0.1}}),
    ],
)
def test_what_does_not_go_with_classes(param: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="does not go with the task") as refused:
        asked(task="classification", **more)
    assert refused.value.param == param


def test_classes_have_gates_of_their_own() -> None:
    assert asked().adapterd.task == "generation"
    options = asked(task="classification", gate={"metric": "f1", "min": 0.9}).adapterd
    assert options.task == "classification"
    with pytest.raises(ValidationError, match="'generation' or 'classification'"):
        asked(task="regression")


@pytest.mark.parametrize("method", get_args(PeftMethod))
def test_methods_that_learn_classes(method: PeftMethod) -> None:
    options = asked(task="classification", peft={"method": method}).adapterd
    if method in CLASSIFIES:
        check_options(options)
        return
    with pytest.raises(InvalidRequest, match="does not learn classes") as refused:
        check_options(options)
    assert refused.value.param == "adapterd.peft.method"


@pytest.mark.parametrize("field", ["modules_to_save", "trainable_tokens"])
def test_the_head_alone_is_trained_beside_the_adapter(field: str) -> None:
    with pytest.raises(InvalidRequest, match="the head alone") as refused:
        check_options(asked(task="classification", peft={field: ["x"]}).adapterd)
    assert refused.value.param == f"adapterd.peft.{field}"
