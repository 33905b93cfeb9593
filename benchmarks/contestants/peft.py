"""transformers + peft: one batch without padding through generate(), mixed by `adapter_names`.

Given its best: no gradients, all prompts of one length, loading and a warm-up outside the clock.
Adapters are in float32, as peft loads them by default; in bfloat16 its decoding was slower.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from benchmarks.contestants.job import Job, Measurement


class _Clock(LogitsProcessor):
    """Notes when each step's logits are there; changes nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return scores


def measure(job: Job, *, merge: bool = False) -> Measurement:
    """Warms up with a few tokens, then measures one batch."""
    torch.set_num_threads(job.threads)
    workload = job.workload()
    model = AutoModelForCausalLM.from_pretrained(workload.base, dtype=job.dtype)
    model.generation_config.eos_token_id = None  # every token is wanted
    if workload.adapters:
        model = _with_adapters(model, workload.adapters)
    if merge:
        model = model.merge_and_unload()
    model.to(job.device).eval()
    names = _named(workload.names) if len(workload.adapters) > 1 else None
    prompts = torch.tensor(workload.prompts, device=job.device)  # [sequences, prompt_tokens]
    _generate(model, prompts[:, :8], names, 3)
    return _generate(model, prompts, names, job.new_tokens)


def measure_merged(job: Job) -> Measurement:
    """The one adapter merged into the base: what serving it alone, and nothing else, costs."""
    if len(job.workload().adapters) != 1:
        raise ValueError("only one adapter can be merged")
    return measure(job, merge=True)


def _with_adapters(model: PreTrainedModel, folders: Mapping[str, Path]) -> PeftModel:
    """The first is active, which is peft's fast way where there is only one."""
    first, *others = folders
    wrapped = PeftModel.from_pretrained(model, str(folders[first]), adapter_name=first)
    for name in others:
        wrapped.load_adapter(str(folders[name]), name)
    return wrapped


def _named(names: tuple[str | None, ...]) -> list[str]:
    """As peft's `adapter_names` says it."""
    return ["__base__" if name is None else name for name in names]


@torch.inference_mode()
def _generate(
    model: Any,  # PreTrainedModel or PeftModel, whose generate() no stub describes
    prompts: torch.Tensor,
    names: list[str] | None,
    new_tokens: int,
) -> Measurement:
    clock = _Clock()
    options = {} if names is None else {"adapter_names": names}
    start = time.perf_counter()
    out = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        ),
        logits_processor=LogitsProcessorList([clock]),
        **options,
    )
    total_s = time.perf_counter() - start
    new = out[:, prompts.shape[1] :].tolist()
    return Measurement(
        tokens=tuple(map(tuple, new)),
        prefill_s=clock.times[0] - start,
        total_s=total_s,
        decode_steps=len(clock.times) - 1,
    )
