"""The prefix benchmark at tiny size: its figures add up, and wrong tokens stop it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import prefix
from benchmarks.workload import read
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

JOB = prefix.Job("float32", system_tokens=100, question_tokens=8, threads=1)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A tiny base where the benchmark keeps its own, and one adapter."""
    base = make_base(LLAMA, tmp_path / "base")
    make_adapter(base, LLAMA, RECIPES[0], tmp_path / "adapters" / "a00", seed=0)
    return tmp_path


def test_measures_compares_and_writes(work: Path, tmp_path: Path):
    options = ["--work", str(work), "--repeats", "2", "--threads", "1", "--dtype", "float32"]
    options += ["--system-tokens", "100", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(prefix.app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "results" / "prefix.json").read_text())
    assert result["tokens_checked"] == 2 * prefix.CHECK_TOKENS
    assert [len(times) for times in result["ttft_s"].values()] == [2, 2, 2, 2]
    assert str(work) not in json.dumps(result)
    assert "base cold / base warm" in (tmp_path / "results" / "prefix.md").read_text()


def test_a_wrong_token_stops_it(work: Path, monkeypatch: pytest.MonkeyPatch):
    honest = prefix.Asker.pair

    def pair(*args: object) -> tuple[prefix.Reply, prefix.Reply]:
        cold, warm = honest(*args)
        return cold, replace(warm, tokens=(*warm.tokens[:-1], 0))

    monkeypatch.setattr(prefix.Asker, "pair", pair)
    with pytest.raises(prefix.WrongTokens, match=r"warm, .* cold"):
        prefix.check_tokens(read(work, prefix.ONE), JOB)


def test_a_cache_that_finds_nothing_stops_it(work: Path, monkeypatch: pytest.MonkeyPatch):
    config = prefix.EngineConfig
    monkeypatch.setattr(prefix, "EngineConfig", lambda **o: config(prefix_cache=False, **o))
    with pytest.raises(prefix.WrongTokens, match="cold found 0 tokens, warm 0"):
        prefix.check_tokens(read(work, prefix.ONE), JOB)


def test_ratios_are_of_one_repeat():
    times = {"base cold": [8.0, 9.0], "base warm": [1.0, 3.0]}
    times |= {"adapter cold": [16.0, 9.0], "adapter warm": [1.0, 1.0]}
    result = prefix.Result(prefix.describe(), JOB, 0, times)
    assert (result.ratio("base").least, result.ratio("base").most) == (3.0, 8.0)
    assert (result.ratio("adapter").least, result.ratio("adapter").most) == (9.0, 16.0)
