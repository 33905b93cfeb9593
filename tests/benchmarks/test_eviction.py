"""The simulation of eviction at small size: its figures add up, and are the policies' own."""

import json
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import eviction
from benchmarks.__main__ import app
from benchmarks.eviction import POLICIES, TRAFFIC, Shape, make_adapters, play

SHAPE = Shape(adapters=400, slots=16, host_bytes=1 << 30, running=4, draws=4000, seed=0)


def test_plays_and_writes(tmp_path: Path) -> None:
    options = ["--adapters", "100", "--slots", "8", "--host-gib", "0.5", "--running", "4"]
    done = CliRunner().invoke(
        app,
        ["eviction", *options, "--draws", "500", "--results", str(tmp_path)],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "eviction.json").read_text())
    played = [(one["traffic"], one["policy"]) for one in result["outcomes"]]
    assert played == [(traffic, policy) for traffic in TRAFFIC for policy in POLICIES]
    written = (tmp_path / "eviction.md").read_text()
    assert all(f"| {policy} |" in written for policy in POLICIES)
    assert TRAFFIC.keys() == eviction.WHAT.keys()


@pytest.mark.parametrize("traffic", TRAFFIC)
@pytest.mark.parametrize("policy", POLICIES)
def test_figures_add_up_and_come_again(traffic: str, policy: eviction.EvictionName) -> None:
    one = play(traffic, policy, SHAPE)
    assert one == play(traffic, policy, SHAPE)
    assert 0 <= one.slot_hits <= one.memory_hits <= 1
    drawn = islice(TRAFFIC[traffic](SHAPE), SHAPE.draws // 5, SHAPE.draws * 6 // 5)
    adapters = make_adapters(SHAPE)
    assert one.slot_bytes <= sum(adapters[number].bytes for number in drawn)
    largest, least = max(a.bytes for a in adapters), min(a.bytes for a in adapters)
    missed = round((1 - one.slot_hits) * SHAPE.draws)
    assert missed * least <= one.slot_bytes <= missed * largest
    assert one.disk_bytes <= one.slot_bytes


def test_lru_never_finds_what_comes_round_too_late() -> None:
    assert play("round robin", "lru", SHAPE).slot_hits == 0


def test_counting_uses_pays_where_popularity_stays() -> None:
    lru, lfu = (play("zipf", policy, SHAPE).slot_hits for policy in ("lru", "lfu"))
    assert lfu > lru
