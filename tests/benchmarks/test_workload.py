"""Who answers what in each scenario, and the files that it needs."""

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.peers import SCENARIOS
from benchmarks.workload import (
    HIGHEST_RANK,
    RANKS,
    Scenario,
    adapter_names,
    name_of,
    number_and_rank,
    read,
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_sequence_has_a_name_and_a_prompt(name: str, tmp_path: Path):
    scenario = SCENARIOS[name]
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"vocab_size": 100}))
    workload = read(tmp_path, scenario)
    assert len(workload.names) == len(workload.prompts) == scenario.sequences
    assert {len(prompt) for prompt in workload.prompts} == {scenario.prompt_tokens}
    assert all(2 <= token < 100 for prompt in workload.prompts for token in prompt)
    assert set(workload.adapters) == {one for one in workload.names if one is not None}
    assert read(tmp_path, scenario) == workload


def test_how_adapters_are_shared_out():
    assert set(adapter_names(Scenario("base"))) == {None}
    assert set(adapter_names(Scenario("single"))) == {"a00"}
    assert len(set(adapter_names(Scenario("mixed")))) == 16
    assert Counter(adapter_names(Scenario("mixed", adapters=4))) == dict.fromkeys(
        ("a00", "a01", "a02", "a03"), 4
    )
    ranks = [number_and_rank(name)[1] for name in adapter_names(Scenario("ranks")) if name]
    assert set(ranks) == set(RANKS) and len(set(adapter_names(Scenario("ranks")))) == 16


def test_one_of_high_rank_stands_among_the_low_ones():
    low = adapter_names(Scenario("low-rank", sequences=64, adapters=64))
    mixed = adapter_names(Scenario("one-high-rank", sequences=64, adapters=64))
    different = [(a, b) for a, b in zip(low, mixed, strict=True) if a != b]
    assert different == [(name_of(32, min(RANKS)), name_of(32, HIGHEST_RANK))]
    assert {number_and_rank(name)[1] for name in low if name is not None} == {min(RANKS)}


def test_zipf_prefers_the_first():
    names = adapter_names(Scenario("zipf", sequences=2000, adapters=64))
    counts = Counter(names)
    assert counts["a00"] > counts["a01"] > counts["a10"]
    assert counts["a00"] == pytest.approx(2 * counts["a01"], rel=0.2)


def test_names_say_their_rank():
    assert number_and_rank(name_of(7)) == (7, 16)
    assert number_and_rank(name_of(12, 64)) == (12, 64)
