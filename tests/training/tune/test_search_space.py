"""What is searched of a request, and what a trial's values make of it."""

import pytest

from adapters_store.errors import InvalidRequest
from training.methods.fields import named_targets
from training.spec import JobRequest
from training.tune.search_space import (
    DECAY,
    DROPOUT,
    EVALS,
    RANGES,
    RANK,
    RATE,
    TARGETS,
    published_body,
    space_of,
    trial_body,
    values,
    words,
)

REQUEST = {"model": "b", "training_file": "f", "seed": 7, "adapterd": {"name": "sql"}}
PARAMS = {RANK: 5, TARGETS: "attention", RATE: 2.5, DROPOUT: 0.05, DECAY: 0.01}


def test_all_is_searched_that_a_request_leaves_open():
    space = space_of(REQUEST)
    assert list(space.ranges) == list(RANGES)
    assert space.defaults == {RANK: 4, TARGETS: "all", RATE: 1.0, DROPOUT: 0.0, DECAY: 0.0}
    for name, value in space.defaults.items():
        assert space.ranges[name]._contains(space.ranges[name].to_internal_repr(value))


@pytest.mark.parametrize(
    ("said", "closed"),
    [
        ({"peft": {"rank": 8}}, {RANK}),
        ({"peft": {"targets": ["q_proj"], "dropout": 0.0}}, {TARGETS, DROPOUT}),
        ({"learning_rate": 1e-4}, {RATE}),
        ({"weight_decay": 0.0}, {DECAY}),
        ({"peft": {"method": "ia3"}}, {RANK, TARGETS, DROPOUT}),
        ({"peft": {"method": "full"}}, {RANK, TARGETS, DROPOUT}),
        ({"peft": {"method": "bottleneck"}}, {RANK, TARGETS}),
    ],
)
def test_what_is_said_is_not_searched(said: dict, closed: set[str]):
    space = space_of(REQUEST | {"adapterd": {"publish": False, **said}})
    assert set(RANGES) - set(space.ranges) == closed


def test_a_request_that_says_everything_is_refused():
    peft = {"rank": 8, "targets": ["q_proj"], "dropout": 0.1}
    said = {"peft": peft, "learning_rate": 1e-3, "weight_decay": 0.1}
    with pytest.raises(InvalidRequest, match="leave some open"):
        space_of(REQUEST | {"adapterd": said})


def test_a_trials_values_go_where_a_job_takes_them():
    request = REQUEST | {"adapterd": {"name": "sql", "gate": {"max": 1.0}, "max_steps": 9}}
    asked = JobRequest.model_validate(trial_body(request, 3, PARAMS))
    assert asked.hyper.learning_rate_multiplier == 2.5
    ours = asked.adapterd
    assert (ours.peft.rank, ours.peft.targets, ours.peft.dropout) == (32, ("attention",), 0.05)
    assert (ours.weight_decay, ours.max_steps, ours.evals) == (0.01, 9, EVALS)
    assert (ours.publish, ours.gate, ours.eval_examples) == (False, None, 0)
    assert request["adapterd"]["gate"] == {"max": 1.0}, "the request itself stays as it is"


def test_the_first_trial_is_what_train_would_do():
    own = trial_body(REQUEST, 0, space_of(REQUEST).defaults)
    asked = JobRequest.model_validate(own)
    plain = JobRequest.model_validate(REQUEST)
    assert (asked.hyper, asked.adapterd.peft) == (plain.hyper, plain.adapterd.peft)


def test_the_best_is_published_by_a_run_that_differs_in_nothing_that_trains():
    trial = trial_body(REQUEST, 3, PARAMS)
    last = published_body(REQUEST, 3, PARAMS)
    assert last["adapterd"].pop("gate") == {"better_than": "current"}
    assert (trial["adapterd"].pop("publish"), last["adapterd"].pop("publish")) == (False, True)
    assert trial["adapterd"].pop("eval_examples") == 0
    assert trial == last
    gated = REQUEST | {"adapterd": {"gate": {"max": 0.5}}}
    assert published_body(gated, 3, PARAMS)["adapterd"]["gate"] == {"max": 0.5}


def test_values_in_words_and_for_programs():
    assert words(PARAMS) == "rank 32, attention, rate ×2.5, dropout 0.050, decay 0.010"
    assert words({RATE: 1.0}) == "rate ×1"
    assert values(PARAMS) == {
        "rank": 32, "targets": "attention", "learning_rate_multiplier": 2.5, "dropout": 0.05,
        "weight_decay": 0.01,
    }  # fmt: skip


def test_attention_stands_for_its_modules():
    linears = ("down_proj", "k_proj", "o_proj", "q_proj", "v_proj")
    assert set(named_targets(("attention",), linears)) == set(linears) - {"down_proj"}
    assert set(named_targets(("down_proj", "attention"), linears)) == set(linears)
    assert named_targets(("attention",), ("attention", "mlp")) == ("attention",)
    with pytest.raises(InvalidRequest, match="no linear module known to be of its attention"):
        named_targets(("attention",), ("w1", "w2"))
    with pytest.raises(InvalidRequest, match="no linear module 'x_proj'"):
        named_targets(("x_proj",), linears)
