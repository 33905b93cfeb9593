"""What the scheduler knows of a step's cost, learned from an even machine and a noisy one."""

import random

import pytest

from server.engine.pace import LEAST_ROOM, StepPace

MOST = 512


def seconds_of(decodes: int, prompt_tokens: int) -> float:
    return 0.03 + 0.002 * decodes + 0.001 * prompt_tokens


def trained(noise: float, seed: int = 0, steps: int = 400) -> StepPace:
    """After steps of all sizes, of which some were several times as long as they should be."""
    draw, pace = random.Random(seed), StepPace()
    for _ in range(steps):
        decodes, prompt_tokens = draw.randint(0, 40), draw.choice([0, 0, 20, 100, 512])
        disturbed = 1 + noise * abs(draw.gauss(0, 1)) + (5 if draw.random() < noise / 5 else 0)
        pace.observe(decodes, prompt_tokens, seconds_of(decodes, prompt_tokens) * disturbed)
    return pace


@pytest.mark.parametrize("decodes", [4, 16, 40])
def test_the_room_is_what_the_slowdown_leaves(decodes: int) -> None:
    room = trained(noise=0.0).room(decodes, 1.8, MOST)
    assert room == pytest.approx(0.8 * seconds_of(decodes, 0) / 0.001, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_machine_does_not_mislead_it_by_much(seed: int) -> None:
    room = trained(noise=0.2, seed=seed).room(16, 1.8, MOST)
    assert 0.4 < room / (0.8 * seconds_of(16, 0) / 0.001) < 2


def test_one_step_that_hung_is_soon_forgotten() -> None:
    pace = trained(noise=0.0)
    before = pace.room(16, 1.8, MOST)
    pace.observe(16, 50, 60.0)
    assert pace.room(16, 1.8, MOST) == pytest.approx(before, rel=0.25)


def test_it_follows_a_machine_that_became_slower() -> None:
    pace = trained(noise=0.0)
    for _ in range(200):
        for prompt_tokens in (0, 50):
            pace.observe(16, prompt_tokens, 10 * seconds_of(16, prompt_tokens))
    assert pace.room(16, 1.8, MOST) == pytest.approx(0.8 * seconds_of(16, 0) / 0.001, rel=0.1)


def test_until_it_has_seen_both_kinds_of_step_everything_fits() -> None:
    pace = StepPace()
    assert pace.room(16, 1.8, MOST) == MOST
    pace.observe(0, 512, 0.5)
    pace.observe(4, 508, 0.5)
    assert pace.room(4, 1.8, MOST) == MOST
    pace.observe(4, 0, 0.03)
    assert pace.room(4, 1.8, MOST) < MOST


def test_a_prompt_goes_on_however_dear_its_tokens_are() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.observe(1, 0, 0.001)
        pace.observe(1, 16, 1.0)
    assert pace.room(1, 1.8, MOST) == LEAST_ROOM
    assert pace.room(1, 1.8, 8) == 8


def test_tokens_that_cost_nothing_all_fit() -> None:
    pace = StepPace()
    for _ in range(50):
        pace.observe(8, 0, 0.01)
        pace.observe(8, 512, 0.01)
    assert pace.room(8, 1.2, MOST) == MOST
