"""The mixed benchmark at tiny size: its figures add up, and wrong tokens stop it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import mixed
from benchmarks.contestants import adapterd, peft
from benchmarks.contestants.job import Job, Measurement
from benchmarks.spread import ratios, spread
from benchmarks.workload import ADAPTERS
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

JOB = Job("adapterd", "base", "", "bfloat16", prompt_tokens=12, new_tokens=4, threads=1)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A tiny base and sixteen adapters where the benchmark keeps its own."""
    base = make_base(LLAMA, tmp_path / "base")
    for number in range(ADAPTERS):
        folder = tmp_path / "adapters" / f"a{number:02}"
        make_adapter(base, LLAMA, RECIPES[0], folder, seed=number)
    return tmp_path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants without processes of their own: seconds instead of a minute."""

    def measure(job: Job) -> Measurement:
        return adapterd.measure(job) if job.who == "adapterd" else peft.measure(job)

    monkeypatch.setattr(mixed, "in_own_process", measure)


@pytest.mark.usefixtures("in_this_process")
def test_measures_compares_and_writes(work: Path, tmp_path: Path):
    options = ["--work", str(work), "--repeats", "1", "--new-tokens", "3", "--threads", "1"]
    options += ["--prompt-tokens", "12", "--results", str(tmp_path / "results")]
    done = CliRunner().invoke(mixed.app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "results" / "mixed.json").read_text())
    assert result["tokens_checked"] == ADAPTERS * mixed.CHECK_TOKENS
    assert set(result["tokens_per_s"]) == set(mixed.RUNS)
    assert str(work) not in json.dumps(result)
    assert "adapterd mixed-16 / peft mixed-16" in (tmp_path / "results" / "mixed.md").read_text()


def test_a_wrong_token_stops_it(monkeypatch: pytest.MonkeyPatch):
    answers = {("adapterd", "mixed"): (1, 2), ("peft", "mixed"): (1, 3), ("adapterd", "base"): (4,)}
    monkeypatch.setattr(mixed, "in_own_process", lambda job: _one(answers[job.who, job.traffic]))
    with pytest.raises(mixed.WrongTokens, match="differ from peft's"):
        mixed.check_tokens(JOB)


def test_an_adapter_without_effect_stops_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixed, "in_own_process", lambda job: _one((1, 2)))
    with pytest.raises(mixed.WrongTokens, match="unchanged"):
        mixed.check_tokens(JOB)


def test_figures_of_a_measurement():
    one = Measurement(((1, 2, 3), (4, 5, 6)), prefill_s=1.0, total_s=3.0, decode_steps=2)
    assert one.tokens_per_s == 2.0
    assert one.decode_ms_per_step == 1000.0
    assert Job(**asdict(JOB)) == JOB


def test_ratios_are_taken_within_a_repeat():
    assert ratios([10, 40], [5, 10]).least == 2
    assert spread([3, 1, 2]).text() == "2.0 (1.0-3.0)"
    with pytest.raises(ValueError, match="no measurement"):
        spread([])


def _one(tokens: tuple[int, ...]) -> Measurement:
    return Measurement((tokens,), prefill_s=1.0, total_s=2.0, decode_steps=1)
