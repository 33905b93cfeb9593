"""OpenVINO GenAI: its continuous batching pipeline, all requests in one generate().

The base is exported by optimum-intel. Each request names its adapter in its generation config, as
the API has it. (Adapters named by requests that are added one by one and stepped change nothing.)
Exporting, loading and a warm-up are outside the clock. The time of the first tokens is the
pipeline's own; a step is one token of every sequence.
"""

# pyright: reportMissingImports=false
# It is installed in an environment of its own only (venvs.py).

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.contestants.job import Job, Measurement
from benchmarks.workload import Workload

PRECISION = {"bfloat16": "bf16", "float32": "f32"}


def measure(job: Job) -> Measurement:
    """Warms up with a few tokens, then measures one batch."""
    workload = job.workload()
    adapters = {
        name: (genai.Adapter(str(folder / "adapter_model.safetensors")), _scale(folder))
        for name, folder in workload.adapters.items()
    }
    pipeline = _pipeline(job, workload, _config(list(adapters.values())))
    configs = [
        _config([] if name is None else [adapters[name]]) if adapters else None
        for name in workload.names
    ]
    _generate(pipeline, [prompt[:8] for prompt in workload.prompts], configs, 3)
    return _generate(pipeline, workload.prompts, configs, job.new_tokens)


def _scale(folder: Path) -> float:
    """What peft multiplies the delta by; OpenVINO reads the tensors only."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return config["lora_alpha"] / config["r"]


def _config(adapters: list[tuple[genai.Adapter, float]]) -> genai.AdapterConfig:
    config = genai.AdapterConfig()
    for adapter, scale in adapters:
        config.add(adapter, scale)
    return config


def _pipeline(
    job: Job, workload: Workload, adapters: genai.AdapterConfig
) -> genai.ContinuousBatchingPipeline:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_seqs = max(16, job.sequences)
    scheduler.max_num_batched_tokens = 2048
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    options: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": PRECISION[job.dtype],
        "INFERENCE_NUM_THREADS": job.threads,
    }
    if job.dtype == "float32":
        options["KV_CACHE_PRECISION"] = "f32"
    if workload.adapters:
        options["adapters"] = adapters
    return genai.ContinuousBatchingPipeline(
        str(_exported(workload.base)), scheduler, "CPU", options
    )


def _exported(base: Path) -> Path:
    """The base as OpenVINO reads it, in float32 (which loses nothing), made once."""
    folder = base.parent / "openvino"
    if not (folder / "done").exists():
        program = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        options = ["--task", "text-generation-with-past", "--weight-format", "fp32"]
        command = [*program, "--model", str(base), *options, str(folder)]
        subprocess.run(command, stdout=sys.stderr, check=True)
        (folder / "done").touch()
    return folder


def _generate(
    pipeline: genai.ContinuousBatchingPipeline,
    prompts: list[tuple[int, ...]] | tuple[tuple[int, ...], ...],
    adapters: list[genai.AdapterConfig | None],
    new_tokens: int,
) -> Measurement:
    """One batch."""
    inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
    configs = [_sampling(new_tokens, adapter) for adapter in adapters]
    start = time.perf_counter()
    results = pipeline.generate(inputs, configs)
    total_s = time.perf_counter() - start
    results.sort(key=lambda result: result.m_request_id)
    return Measurement(
        tokens=tuple(tuple(result.m_generation_ids[0]) for result in results),
        prefill_s=1e-3 * max(result.perf_metrics.get_ttft().mean for result in results),
        total_s=total_s,
        decode_steps=new_tokens - 1,
    )


def _sampling(new_tokens: int, adapter: genai.AdapterConfig | None) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.min_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    if adapter is not None:
        config.adapters = adapter
    return config
