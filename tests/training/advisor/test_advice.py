"""An advice from a file to its report: by the worker, by the command; the page that tells it."""

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tiny_base import make_tiny_base
from tests.training.house import House, house
from training.advisor.advice import advice_files
from training.advisor.campaign import RATES
from training.advisor.page import page
from training.run import work_on
from training.spec import JobRequest

SIGNS = "#$%&@"
NASTY = "<script>alert('x')</script>"
QUICK = {
    "probe_steps": 4,
    "held_out": 32,
    "answered": 2,
    "max_examples": 160,
    "batch_size": 4,
    "full": False,
}


def examples() -> bytes:
    """Signs that the embedded base was never trained on, for two groups, one with a nasty name."""
    lines = (
        {
            "messages": [
                {"role": "user", "content": f"Sign {number % 5}, please."},
                {"role": "assistant", "content": SIGNS[number % 5] * (1 + number % 2)},
            ],
            "group": NASTY if number % 2 else "short",
        }
        for number in range(160)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("data")) as opened:
        yield opened


@pytest.fixture(scope="module")
def job_id(home: House) -> str:
    """Of an advice that a worker has given."""
    spec = {
        "kind": "advise",
        "model": "adapterd-demo",
        "training_file": home.file(examples()),
        "seed": 3,
        "adapterd": QUICK,
    }
    job = home.book.create(spec)
    home.work()
    return job.id


@pytest.fixture
def report(home: House, job_id: str) -> dict[str, Any]:
    job = home.book.get(job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.result is not None
    return copy.deepcopy(job.result["report"])


def test_a_worker_gives_advice(home: House, job_id: str, report: dict[str, Any]) -> None:
    assert report["kind"] == "advice"
    assert report["job"] == job_id
    parts = [one["part"] for one in report["probes"]]
    assert {"rate", "rank", "variant", "targets", "tokens", "embeddings", "prompt"} == set(parts)
    assert all(one["estimate"]["bytes"] > 0 for one in report["probes"])
    assert all([step for step, _ in one["curve"]] == [0, 1, 2, 3, 4] for one in report["probes"])
    assert {one["batch_size"] for one in [report["budget"]]} == {4}
    assert "There is no yardstick" in report["summary"]
    assert report["full_left_out"] == "it was not asked for"
    assert report["summary"] in home.told(job_id)


def test_the_base_comes_out_of_each_probe_as_it_went_in(report: dict[str, Any]) -> None:
    """The losses before a first step: PEFT's methods begin where the base is."""
    base = report["data"]["base_loss"]
    assert {one["curve"][0][1] for one in report["probes"]} == {base}
    quick = next(one for one in report["probes"] if one["part"] == "variant")
    assert quick["loss"] < base


def test_signs_that_the_base_never_saw_are_found(report: dict[str, Any]) -> None:
    words = report["data"]["vocabulary"]
    assert {one["token"] for one in words["untrained"]} >= set(SIGNS)
    found = {one["rule"]: one for one in report["findings"]}
    assert found["never-trained tokens"]["holds"]


def test_groups_are_compared(report: dict[str, Any]) -> None:
    assert report["groups"][0]["model"] == "base"
    assert {name for name, *_ in report["groups"][0]["scores"]} <= {NASTY, "short"}


def test_what_is_recommended_is_a_jobs_body(report: dict[str, Any]) -> None:
    recommended = report["recommendation"]
    body = {"model": "m", "training_file": "f", **recommended["job"]}
    request = JobRequest.model_validate(body)
    assert request.adapterd.learning_rate == pytest.approx(
        next(one for one in report["probes"] if one["name"] == recommended["probe"])[
            "learning_rate"
        ]
    )
    assert recommended["served"] == request.adapterd.publish


def test_the_result_files(home: House, job_id: str, report: dict[str, Any]) -> None:
    result = home.book.get(job_id).result
    assert result is not None
    files = {}
    for file_id in result["result_files"]:
        record, content = home.store.files.open(file_id)
        with content:
            files[record.filename] = content.read()
        assert record.purpose == "fine-tune-results"
    assert set(files) == {f"{job_id}.report.json", f"{job_id}.report.html"}
    assert json.loads(files[f"{job_id}.report.json"]) == report


def test_the_page_escapes_what_came_from_data(report: dict[str, Any]) -> None:
    report["base"] = report["summary"] = NASTY
    report["probes"][0]["name"] = f"$x^{NASTY}"
    report["data"]["vocabulary"]["untrained"] = [{"id": 1, "token": "<img src=x>"}]
    told = page(report)
    assert NASTY not in told
    assert "<img" not in told
    assert "&lt;script&gt;" in told
    assert told.count("<svg") == 1
    assert "//" not in told.split("<svg")[0]  # nothing is loaded from elsewhere
    assert set(advice_files(report)) == {"report.json", "report.html"}


def test_an_advice_that_is_cancelled_leaves_nothing(home: House) -> None:
    job = home.book.create(
        {"kind": "advise", "model": "m", "training_file": home.file(examples()), "adapterd": QUICK}
    )
    lease = home.place.queue.claim("w")
    assert lease is not None
    stop = threading.Event()
    stop.set()
    home.book.cancel(job.id)
    work_on(home.place, lease, stop)
    ended = home.book.get(job.id)
    assert (ended.status, ended.result) == ("cancelled", None)


def test_a_file_that_is_too_small_fails_at_once(home: House) -> None:
    content = b"".join(examples().splitlines(keepends=True)[:5])
    job = home.book.create(
        {"kind": "advise", "model": "m", "training_file": home.file(content), "adapterd": QUICK}
    )
    home.work()
    ended = home.book.get(job.id)
    assert ended.status == "failed"
    assert ended.error == "training_file has 5 examples; advice takes 16 at least"


def test_the_command_writes_a_page_with_a_yardstick(tmp_path: Path) -> None:
    base, data, out = tmp_path / "tiny", tmp_path / "data.jsonl", tmp_path / "page.html"
    make_tiny_base(base)
    data.write_bytes(examples())
    told = ["advise", str(data), "--model", str(base), "--device", "cpu", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", "from server.cli import main; main()", *told]
        + ["--probe-steps", "4", "--json", "--output", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "held-out loss" in done.stderr
    full = [one for one in report["probes"] if one["part"] == "full"]
    assert 3 <= len(full) <= RATES
    assert report["spectrum"]["rank90"] >= 1
    assert report["gap"] is not None
    assert out.read_text().count("<svg") == 2
    bad = subprocess.run(
        [sys.executable, "-c", "from server.cli import main; main()", "advise", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].startswith("adapterd: ")
    assert "cannot be trained on; line 1: " in bad.stderr
