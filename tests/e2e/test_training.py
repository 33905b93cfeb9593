"""With the openai client alone: a file becomes an adapter that the running server serves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.e2e.server_process import ServerProcess, adapterd, serving, working

LESSONS = [(f"Ahoy number {number}!", f" Aye aye, number {number}.") for number in range(300)]
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """The demo's server and a worker on the same data."""
    folder = tmp_path_factory.mktemp("house")
    with serving(folder) as server, working(folder, "--nice", "0", "--threads", "1"):
        yield server, folder


@pytest.fixture
def client(house: tuple[ServerProcess, Path]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{house[0].url}/v1", api_key="none") as opened:
        yield opened


def test_a_file_becomes_an_adapter_that_answers(client: OpenAI) -> None:
    lines = (json.dumps({"prompt": asked, "completion": said}) for asked, said in LESSONS)
    content = "\n".join(lines).encode()
    file = client.files.create(file=("ahoy.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="adapterd-demo",
        training_file=file.id,
        suffix="ahoy",
        seed=3,
        extra_body={"adapterd": {"max_steps": 150, "gate": {"better_than": "base"}}},
    )
    assert job.status == "queued"
    deadline = time.monotonic() + 120
    while job.status not in ENDED:
        assert time.monotonic() < deadline, job.to_json()
        time.sleep(0.5)
        job = client.fine_tuning.jobs.retrieve(job.id)
    events = list(client.fine_tuning.jobs.list_events(job.id))
    assert job.status == "succeeded", events
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ahoy-")
    answer = client.completions.create(
        model=job.fine_tuned_model, prompt="Ahoy number 417!", max_tokens=32, temperature=0
    )
    assert answer.choices[0].text == " Aye aye, number 417."
    assert job.trained_tokens is not None
    assert any(event.type == "metrics" for event in events)
    assert "The gate is passed" in "\n".join(event.message for event in events)
    steps = [one.step_number for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 150
    report = json.loads(client.files.content(job.result_files[0]).read())
    assert report["scores"]["new"]["exact_match"] > 0.9
    assert report["scores"]["base"]["exact_match"] == 0.0


def test_training_on_this_machine_alone_needs_neither(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    with data.open("w") as file:
        for asked, said in LESSONS[:40]:
            file.write(json.dumps({"prompt": asked, "completion": said}) + "\n")
    told = ("--data-dir", str(tmp_path / "kept"), "--threads", "1")
    done = adapterd("train", str(data), "--local", "--name", "ahoy", "--max-steps", "8", *told)
    assert done.returncode == 0, done.stderr
    assert "Published as ahoy@1" in done.stdout
    assert "adapterd complete --adapter ahoy@1" in done.stdout
    data.write_text('{"prompt": "one"}\n')
    done = adapterd("train", str(data), "--local", "--name", "ahoy", *told)
    assert done.returncode == 1
    assert "1 line cannot be trained on; line 1: " in done.stderr
