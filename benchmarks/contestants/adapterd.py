"""This project's engine, in-process, without HTTP: requests submitted at once, stepped to the end.

Loading the base, the adapters and a warm-up are outside the clock.
"""

import time

from benchmarks.contestants.job import Job, Measurement
from benchmarks.folder_source import FolderSource
from benchmarks.workload import Workload
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent


def measure(job: Job) -> Measurement:
    """Warms up with a few tokens of every adapter, then measures one batch."""
    workload = job.workload()
    source = FolderSource(workload.adapters)
    engine = Engine(engine_config(job, workload), source)
    digests = [None if name is None else source.digests[name] for name in workload.names]
    try:
        _generate(engine, _warm_up(job, workload), digests, 3)
        return _generate(engine, workload.prompts, digests, job.new_tokens)
    finally:
        engine.close()


def engine_config(job: Job, workload: Workload) -> EngineConfig:
    return EngineConfig(
        model=str(workload.base),
        blobs="",
        dtype=job.dtype,
        device=job.device,
        max_resident_adapters=max(1, len(workload.adapters)),
        max_rank=workload.max_rank,
        max_batch_tokens=512 if job.device == "cpu" else job.sequences * job.prompt_tokens,
        kv_cache_bytes=2 << 30,
        threads=job.threads,
    )


def _warm_up(job: Job, workload: Workload) -> list[tuple[int, ...]]:
    """A few tokens; on a GPU whole prompts, since kernels are compiled for shapes, but backwards,
    so that none is found in the prefix cache."""
    if job.device == "cpu":
        return [prompt[:8] for prompt in workload.prompts]
    return [prompt[::-1] for prompt in workload.prompts]


def _generate(
    engine: Engine,
    prompts: tuple[tuple[int, ...], ...] | list[tuple[int, ...]],
    digests: list[str | None],
    new_tokens: int,
) -> Measurement:
    """Steps until every prompt has its tokens."""
    sampling = SamplingParams(new_tokens, temperature=0.0, ignore_eos=True)
    tokens: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    first_tokens, steps_at_prefill = 0, 0
    steps, prefill_s = 0, 0.0
    start = time.perf_counter()
    for number, (prompt, digest) in enumerate(zip(prompts, digests, strict=True)):
        engine.submit(GenerationRequest(str(number), prompt, sampling, digest))
    while engine.has_work():
        events = engine.step()
        steps += bool(events)
        for event in events:
            assert isinstance(event, TokenEvent), event
            assert event.token_id is not None, event
            tokens[event.request_id].append(event.token_id)
            if len(tokens[event.request_id]) == 1:
                first_tokens += 1
                if first_tokens == len(prompts):
                    prefill_s, steps_at_prefill = time.perf_counter() - start, steps
    return Measurement(
        tokens=tuple(map(tuple, tokens.values())),
        prefill_s=prefill_s,
        total_s=time.perf_counter() - start,
        decode_steps=steps - steps_at_prefill,
    )
