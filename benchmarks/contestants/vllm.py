"""vLLM on the CPU, through its engine: requests submitted at once, stepped to the end.

Given its best: compiled (not in float32, where only tokens are compared), the engine in this
process, one thread per core. Loading, compiling, the adapters and a warm-up are outside the clock.
"""

# pyright: reportMissingImports=false
# It is installed in an environment of its own only (venvs.py).

import time
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from benchmarks.contestants.job import Job, Measurement
from benchmarks.workload import Workload

RANKS = (8, 16, 32, 64, 128, 256)  # of the ranks in use, those that vLLM takes as its largest


def measure(job: Job) -> Measurement:
    """Warms up with a few tokens of every adapter, then measures one batch."""
    workload = job.workload()
    llm = LLM(
        model=str(workload.base),
        dtype=job.dtype,
        skip_tokenizer_init=True,
        max_model_len=2048,
        max_num_seqs=max(16, job.sequences),
        enable_prefix_caching=False,
        enforce_eager=job.dtype == "float32",
        **_lora(workload),
    )
    requests = _requests(workload)
    _generate(llm.llm_engine, [prompt[:8] for prompt in workload.prompts], requests, 3, "warm-up")
    return _generate(llm.llm_engine, workload.prompts, requests, job.new_tokens, "measured")


def _lora(workload: Workload) -> dict[str, Any]:
    """LLM's options; none for the base alone, which is then not slowed by them."""
    if not workload.adapters:
        return {}
    return {
        "enable_lora": True,
        "max_loras": len(workload.adapters),
        "max_cpu_loras": len(workload.adapters),
        "max_lora_rank": next(rank for rank in RANKS if rank >= workload.max_rank),
    }


def _requests(workload: Workload) -> list[LoRARequest | None]:
    """Of each sequence."""
    by_name = {
        name: LoRARequest(name, number, str(folder))
        for number, (name, folder) in enumerate(workload.adapters.items(), 1)
    }
    return [None if name is None else by_name[name] for name in workload.names]


def _generate(
    engine: Any,
    prompts: list[tuple[int, ...]] | tuple[tuple[int, ...], ...],
    adapters: list[LoRARequest | None],
    new_tokens: int,
    label: str,
) -> Measurement:
    """Steps until every prompt has its tokens."""
    sampling = SamplingParams(
        max_tokens=new_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    tokens: dict[str, list[int]] = {f"{label} {number}": [] for number in range(len(prompts))}
    waiting = set(tokens)  # for their first token
    steps, steps_at_prefill, prefill_s = 0, 0, 0.0
    start = time.perf_counter()
    for name, prompt, adapter in zip(tokens, prompts, adapters, strict=True):
        engine.add_request(name, {"prompt_token_ids": list(prompt)}, sampling, lora_request=adapter)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        steps += bool(outputs)
        for output in outputs:
            name = output.request_id
            tokens[name] += output.outputs[0].token_ids
            if waiting and tokens[name]:
                waiting.discard(name)
                if not waiting:
                    prefill_s, steps_at_prefill = time.perf_counter() - start, steps
    return Measurement(
        tokens=tuple(map(tuple, tokens.values())),
        prefill_s=prefill_s,
        total_s=time.perf_counter() - start,
        decode_steps=steps - steps_at_prefill,
    )
