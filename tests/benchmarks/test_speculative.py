"""The benchmark of guesses at tiny size: its figures add up, and wrong tokens stop it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import speculative
from benchmarks.__main__ import app
from benchmarks.workload import read
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

JOB = speculative.Job("float32", sequences=(2,), new_tokens=40, guesses=4, threads=1)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A tiny base where the benchmark keeps its own, and two adapters."""
    base = make_base(LLAMA, tmp_path / "base")
    for number in range(2):
        folder = tmp_path / "adapters" / f"a{number:02}"
        make_adapter(base, LLAMA, RECIPES[number], folder, seed=number)
    return tmp_path


def test_measures_compares_and_writes(work: Path, tmp_path: Path):
    options = ["speculative", "--work", str(work), "--repeats", "2", "--threads", "1"]
    options += ["--dtype", "float32", "--sequences", "2"]
    options += ["--new-tokens", "24", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "results" / "speculative.json").read_text())
    assert result["tokens_checked"] == 2 * 2 * speculative.CHECK_TOKENS
    assert len(result["tokens_per_s"]) == 2 * 2
    assert {len(values) for values in result["tokens_per_s"].values()} == {2}
    assert result["came_true"]["loop, 2 at once, guessing"] > 0.8
    assert "loop, 2 at once, plain" not in result["came_true"]
    assert str(work) not in json.dumps(result)
    written = (tmp_path / "results" / "speculative.md").read_text()
    assert "loop, 2 at once: guessing / plain" in written


def test_a_wrong_token_stops_it(work: Path, monkeypatch: pytest.MonkeyPatch):
    honest = speculative.Player.play

    def play(self: speculative.Player, *args: object) -> speculative.Played:
        played = honest(self, *args)  # type: ignore[arg-type]
        return replace(played, tokens=((*played.tokens[0][:-1], played.guessed),))

    monkeypatch.setattr(speculative.Player, "play", play)
    with pytest.raises(speculative.WrongTokens, match="other tokens than plain"):
        speculative.check_tokens(read(work, speculative.scenario_of(JOB)), JOB)


def test_guesses_that_are_never_made_stop_it(work: Path):
    job = replace(JOB, guesses=0)
    with pytest.raises(speculative.WrongTokens, match="no guess came true"):
        speculative.check_tokens(read(work, speculative.scenario_of(job)), job)


def test_ratios_are_of_one_repeat():
    values = {"loop, 2 at once, plain": [1.0, 2.0], "loop, 2 at once, guessing": [3.0, 4.0]}
    result = speculative.Result(speculative.describe(), JOB, 0, values, {})
    ratio = result.ratio("loop, 2 at once")
    assert (ratio.least, ratio.most) == (2.0, 3.0)
