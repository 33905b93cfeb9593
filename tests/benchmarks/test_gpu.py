"""The GPU benchmark where there is none: it says so, and all but the measuring works."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.contestants import adapterd, peft
from benchmarks.contestants.job import ROOT, Job, Measurement
from benchmarks.gpu import decode, files
from benchmarks.gpu.device import Gpu
from benchmarks.machine import describe
from benchmarks.workload import name_of

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

JOB = Job("adapterd", "mixed", "", "float32", 12, 4, threads=1, sequences=3, adapters=3)
GPU = Gpu("a GPU", 80.0, "9.0", "13.0", "3.7.1", copy_gb_per_s=2000.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_there_is_no_device_and_imports_no_web_framework() -> None:
    code = (
        "import sys, typer.testing, benchmarks.gpu.decode as decode\n"
        "done = typer.testing.CliRunner().invoke(decode.app, [])\n"
        "print(done.exit_code, 'fastapi' in sys.modules, done.output)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("2 False no CUDA device"), done.stderr


def test_its_files_are_what_both_contestants_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At tiny size, on a CPU: every adapter changes the tokens, and both give the same."""
    tiny = files.config()
    tiny.hidden_size, tiny.intermediate_size, tiny.num_hidden_layers = 64, 96, 2
    tiny.num_attention_heads, tiny.num_key_value_heads, tiny.head_dim = 4, 2, 16
    tiny.vocab_size, tiny.max_position_embeddings = 300, 128
    monkeypatch.setattr(files, "config", lambda: tiny)
    for _ in range(2):  # what is there stays
        files.prepare(tmp_path, [name_of(n) for n in range(3)], torch.device("cpu"))
    job = replace(JOB, work=str(tmp_path))
    ours = adapterd.measure(job).tokens
    assert ours == peft.measure(job).tokens
    base = adapterd.measure(replace(job, traffic="base")).tokens
    assert all(mine != theirs for mine, theirs in zip(ours, base, strict=True))


def test_the_roofline_of_the_8b_shape_is_written(tmp_path: Path) -> None:
    files.config().save_pretrained(tmp_path / "base")
    one = Measurement(((1, 2, 3),) * 64, prefill_s=1.0, total_s=1.05, decode_steps=2)
    job = replace(JOB, work=str(tmp_path), prompt_tokens=128, sequences=64, adapters=64)
    result = decode.result_of(describe(), GPU, job, 0, {name: [one, one] for name in decode.RUNS})
    decode.write(result, tmp_path)
    assert 16.0 < result.step_gb["base"] < 17.0  # 15 GB of weights read, 1.3 GB of cache
    assert 21.0 < result.step_gb["mixed"] < 23.0  # and 64 adapters of 84 MB
    assert result.least_ms("base") == pytest.approx(result.step_gb["base"] / 2)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored["decode_ms_per_step"]["peft base"] == pytest.approx([25.0, 25.0])
    assert str(tmp_path) not in json.dumps(stored)
    assert "adapterd mixed-64 / adapterd base | 1.00" in (tmp_path / "gpu.md").read_text()
