"""What a job may ask, and what it is told where it asks what does not go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from adapters_store.errors import InvalidRequest
from training.spec import JobRequest, Teacher

JOB = "ftjob-" + "0" * 24


def asked(method: str = "supervised", **options: Any) -> JobRequest:
    body = {"model": "b", "training_file": "file-1", "method": {"type": method}}
    return JobRequest.model_validate(body | {"adapterd": options})


def test_a_teacher_has_defaults() -> None:
    assert asked(teacher={"job": JOB}).adapterd.teacher == Teacher(
        job=JOB, weight=0.5, temperature=2.0
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
