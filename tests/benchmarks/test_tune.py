"""The tuning benchmark's data and its page; the study itself is tested in tests/training/tune."""

import json
from pathlib import Path

import pytest

from benchmarks.e2e_nlg.data import DataMissing
from benchmarks.machine import describe
from benchmarks.tune.command import Result, Shape, markdown
from benchmarks.tune.judge import Split
from benchmarks.tune.killed import prepare

VALUES = {
    "rank": 32, "targets": "attention", "learning_rate_multiplier": 2.5, "dropout": 0.05,
    "weight_decay": 0.01,
}  # fmt: skip
SCORES = {"eval_loss": 1.25, "exact_match": 0.5}


def test_validation_rows_are_not_trained_on(tmp_path: Path):
    try:
        data = prepare(tmp_path, examples=300, held_out=60, seed=1)
    except DataMissing as missing:
        pytest.skip(str(missing))
    train, validation, test = (
        {json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()}
        for path in (data.train, data.validation, data.test)
    )
    assert (len(train), len(validation)) == (300, 60)
    assert len(test) > 3_000
    assert not train & validation


def test_the_page_tells_what_was_measured():
    trials = [
        {"number": 0, "state": "complete", "loss": 1.5, "values": VALUES | {"rank": 16}},
        {"number": 1, "state": "pruned", "loss": 9.0, "values": VALUES},
        {"number": 2, "state": "complete", "loss": 1.25, "values": VALUES},
    ]
    study = {
        "trials": trials, "best": trials[2], "defaults": trials[0], "adapter": "banking77",
        "version": {"digest": "d"},
    }  # fmt: skip
    split = Split("validation", 60, 50, {"base": SCORES, "best": SCORES})
    page = markdown(
        Result(
            describe(),
            Shape(300, 60, 3, 2, 1, 0),
            study,
            12.0,
            (1, 2),
            3,
            {"1": 2, "2": 1},
            (50, 75),
            True,
            [split],
        )
    )
    for part in (
        "`kill -9` 2 times, once trial 1 was under way and once trial 2 was under way",
        "3 trials: 2 complete, 1 pruned",
        "begun by a worker: 2 once, 1 twice",
        "50 optimizer steps of 75",
        "Best is trial 2: rank 32, attention, rate ×2.5, dropout 0.050, decay 0.010",
        "| validation | best | 1.2500 | 50.0% | 60 | 50 |",
        "its digest is the same as",
    ):
        assert part in page
