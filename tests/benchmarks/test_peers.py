"""The table of peers: who is checked, left out, or wrong, and what is written of it."""

import dataclasses
import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import floor, peers, plot, venvs, w1
from benchmarks.contestants.job import (
    ContestantFailed,
    Job,
    Measurement,
    in_own_process,
)
from benchmarks.floor import Floor
from benchmarks.report import Cell, Check
from benchmarks.workload import Scenario, adapter_names

JOB = Job("adapterd", "base", "", "bfloat16", prompt_tokens=12, new_tokens=4, threads=1)


def answer(job: Job) -> Measurement:
    """Tokens that depend on the request and its adapter, as a right contestant's do."""
    names = adapter_names(job.scenario)
    tokens = tuple(
        tuple(hash((name, at, step)) % 1000 for step in range(job.new_tokens))
        for at, name in enumerate(names)
    )
    return Measurement(tokens, prefill_s=1.0, total_s=3.0, decode_steps=job.new_tokens - 1)


def first_adapter_for_all(job: Job) -> Measurement:
    """OpenVINO's mistake."""
    if job.traffic != "mixed":
        return answer(job)
    return answer(dataclasses.replace(job, traffic="single"))


def too_large(job: Job) -> Measurement:
    if job.dtype == "float32":
        return answer(job)
    raise ContestantFailed(f"Traceback\n{Path.home()}/x.py\nMemoryError: no room in {Path.home()}")


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No process, no model: one peer right, one wrong, one not installable. Gives the folder."""
    answers = {"vllm": too_large, "openvino": first_adapter_for_all}

    def python_of(peer: venvs.Peer, folder: Path, *, install: bool) -> Path:
        if peer.who == "llamacpp":
            raise venvs.Unavailable(f"no compiler in {Path.home()}")
        return folder / peer.who

    monkeypatch.setattr(peers, "in_own_process", lambda job, **_: answers.get(job.who, answer)(job))
    monkeypatch.setattr(venvs, "python_of", python_of)
    monkeypatch.setattr(venvs, "versions", lambda peer, python: {peer.who: "1.0"})
    monkeypatch.setattr(floor, "in_own_process", lambda threads: Floor(20.0, 200.0, 150.0))
    monkeypatch.setattr(w1, "prepare", lambda work, scenarios: None)
    w1.config().save_pretrained(tmp_path / "base")
    return tmp_path


def invoke(work: Path, *options: str) -> tuple[dict[str, dict], str]:
    done = CliRunner().invoke(
        peers.app,
        ["--work", str(work), "--results", str(work / "results"), "--repeats", "2", *options],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    results = work / "results"
    ET.parse(results / "peers.svg")
    return json.loads((results / "peers.json").read_text()), (results / "peers.md").read_text()


def test_right_wrong_failing_and_missing_peers(contestants: Path):
    results, text = invoke(contestants, "--scenario", "single", "--scenario", "mixed-16")
    single, mixed = results["cells"]["single"], results["cells"]["mixed-16"]
    assert len(single["adapterd"]["tokens_per_s"]) == len(single["openvino"]["tokens_per_s"]) == 2
    assert mixed["openvino"]["reason"] == "wrong: not peft's tokens"
    assert mixed["openvino"]["tokens_per_s"] == []
    assert "wrong: 15 of 16 requests" in text
    assert single["vllm"]["reason"] == "failed: MemoryError: no room in ~"
    assert results["skipped"] == {"llamacpp": "no compiler in ~"} and "llamacpp" not in single
    assert "llamacpp: not run, no compiler" in text
    assert str(Path.home()) not in json.dumps(results) + text
    assert len(results["floors"]) == 2


def test_ratios_and_the_floor_are_in_the_table(contestants: Path):
    _, text = invoke(contestants, "--scenario", "mixed-16", "--contestant", "adapterd",
                     "--contestant", "peft")  # fmt: skip
    row = next(line for line in text.splitlines() if line.startswith("| peft"))
    assert "1.00 (1.00-1.00)" in row and "16 of 16" in row
    assert re.search(r"reads 20\.0 \(20\.0-20\.0\) GB/s", text)


def test_unknown_names_are_refused(contestants: Path):
    done = CliRunner().invoke(peers.app, ["--work", str(contestants), "--scenario", "w2"])
    assert done.exit_code == 2 and "w2" in done.output


def test_adapters_without_effect_stop_it(contestants: Path, monkeypatch: pytest.MonkeyPatch):
    same = Measurement(((1, 2),) * 16, prefill_s=1.0, total_s=2.0, decode_steps=1)
    monkeypatch.setattr(peers, "in_own_process", lambda job, **_: same)
    with pytest.raises(peers.NothingToCompareWith, match="leaves the base's tokens"):
        invoke(contestants, "--scenario", "mixed-16")


def test_a_first_token_decides_and_a_late_near_tie_does_not():
    wanted = [[1] * 6] * 16
    assert Check.of([[1] * 6] * 16, wanted).text() == "96 of 96"
    assert Check.of([[1] * 5 + [2]] + [[1] * 6] * 15, wanted).right
    assert not Check.of([[2] + [1] * 5] + [[1] * 6] * 15, wanted).right
    assert not Check.of([[1]] * 16, wanted).right
    with pytest.raises(ValueError):
        Check.of([[1]], wanted)


def test_a_cell_keeps_every_repeat():
    cell = Cell()
    for _ in range(3):
        cell.add(answer(JOB))
    assert cell.measured and len(cell.prefill_s) == 3 and len(cell.first_tokens) == 16
    cell.reason = "failed: later"
    assert not cell.measured


def test_bars_say_what_is_missing():
    picture = plot.bars("t", {"a<b": {"us": [1.0, 2.0], "them": "wrong: all", "nobody": []}})
    ET.fromstring(picture)
    assert ">wrong<" in picture and "not measured" in picture and "a&lt;b" in picture


def contestant_program(tmp_path: Path, program: str) -> Path:
    """Stands in for a peer's interpreter."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return path


def test_a_contestants_answer_is_read_from_its_own_interpreter(tmp_path: Path):
    """It sees the job and its variables, and runs where benchmarks can be imported."""
    python = contestant_program(
        tmp_path,
        "import json, os, sys\n"
        "job = json.load(sys.stdin)\n"
        "assert os.path.isdir('benchmarks') and os.environ['OMP_NUM_THREADS'] == '1'\n"
        "print(json.dumps({'tokens': [[job['new_tokens'], int(os.environ['SEEN'])]],\n"
        "                  'prefill_s': 1.0, 'total_s': 2.0, 'decode_steps': 1}))\n",
    )
    one = in_own_process(JOB, python=python, variables={"SEEN": "7"})
    assert one == Measurement(((4, 7),), 1.0, 2.0, 1)


def test_a_contestant_that_ends_or_hangs_has_failed(tmp_path: Path):
    python = contestant_program(tmp_path, "raise SystemExit('no such instruction')")
    with pytest.raises(ContestantFailed, match="no such instruction"):
        in_own_process(JOB, python=python)
    python = contestant_program(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(ContestantFailed, match="no answer"):
        in_own_process(JOB, python=python, timeout_s=0.2)


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commands: list[str] = []

    def run(command: list[str], variables: object = None) -> str:
        commands.append(" ".join(command))
        (tmp_path / "openvino").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(venvs, "_run", run)
    peer = next(peer for peer in venvs.PEERS if peer.who == "openvino")
    with pytest.raises(venvs.Unavailable, match="not installed"):
        venvs.python_of(peer, tmp_path, install=False)
    python = venvs.python_of(peer, tmp_path, install=True)
    assert python == tmp_path / "openvino" / "bin" / "python"
    assert any("requirements/openvino.txt" in one for one in commands)
    assert any(one.endswith("uninstall --quiet --yes torchvision") for one in commands)
    made = len(commands)
    assert venvs.python_of(peer, tmp_path, install=False) == python and len(commands) == made


def test_an_install_that_fails_says_why(tmp_path: Path):
    with pytest.raises(venvs.Unavailable, match="failed: no room"):
        venvs._run([sys.executable, "-c", "import sys; sys.exit('first\\nno room')"])


def test_every_peer_has_pinned_requirements():
    for peer in venvs.PEERS:
        lines = (venvs.REQUIREMENTS / f"{peer.who}.txt").read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        assert pins and all("==" in pin for pin in pins)
        assert "torch==2.13.0" in pins


def test_scenarios_are_w1_and_its_variants():
    assert peers.SCENARIOS["mixed-16"] == Scenario("mixed")
    assert {one.sequences for one in peers.SCENARIOS.values()} == {1, 16, 64}
    assert {one.prompt_tokens for one in peers.SCENARIOS.values()} == {128, 1024}
