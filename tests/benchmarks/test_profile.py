"""The profile at tiny size: every part is timed, and they come near the whole."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import floor, profile, w1
from benchmarks.floor import Floor
from benchmarks.workload import ADAPTERS, name_of
from server.kernels.cpu.native import load_native
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = make_base(LLAMA, tmp_path / "base")
    for number in range(ADAPTERS):
        folder = tmp_path / "adapters" / name_of(number)
        make_adapter(base, LLAMA, RECIPES[0], folder, seed=number)
    monkeypatch.setattr(w1, "prepare", lambda work, scenarios: None)
    monkeypatch.setattr(floor, "in_own_process", lambda threads: Floor(20.0, 200.0, 150.0))
    return tmp_path


@pytest.mark.skipif(not load_native(), reason="the native library is not built")
def test_a_step_is_taken_apart(work: Path) -> None:
    options = ["--work", str(work), "--threads", "1", "--dtype", "float32"]
    done = CliRunner().invoke(
        profile.app, [*options, "--results", str(work / "results")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    result = json.loads((work / "results" / "profile.json").read_text())
    for one in result["profiles"].values():
        assert one["parts_ms"].keys() == profile.WHY.keys()
        assert 0.3 * one["step_ms"] < sum(one["parts_ms"].values()) < 3 * one["step_ms"]
    low_rank = [one["parts_ms"]["layers: low-rank"] for one in result["profiles"].values()]
    assert low_rank[0] < low_rank[1], "the base alone has no adapters to add"
    assert str(work) not in json.dumps(result)
    assert "## mixed-16" in (work / "results" / "profile.md").read_text()


def test_without_native_layers_it_says_so(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile.engine_module, "attach", lambda base: 0)
    with pytest.raises(profile.NothingNative):
        CliRunner().invoke(profile.app, ["--work", str(work)], catch_exceptions=False)
