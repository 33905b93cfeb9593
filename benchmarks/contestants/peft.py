"""transformers + peft: one batch without padding through generate(), mixed by `adapter_names`.

Given its best: no gradients, all prompts of one length, loading and a warm-up outside the clock.
Adapters are in float32, as peft loads them by default; in bfloat16 its decoding was slower.
"""

import time
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

from benchmarks import w1
from benchmarks.contestants.job import Job, Measurement


class _Clock(LogitsProcessor):
    """Notes when each step's logits are there; changes nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def measure(job: Job) -> Measurement:
    """Warms up with a few tokens, then measures one batch."""
    workload = w1.prepare(Path(job.work), prompt_tokens=job.prompt_tokens)
    model = AutoModelForCausalLM.from_pretrained(workload.base, dtype=job.dtype)
    model.generation_config.eos_token_id = None  # every token is wanted
    if job.traffic == "mixed":
        model = _with_adapters(model, workload.adapters)
    model.eval()
    names = [folder.name for folder in workload.adapters] if job.traffic == "mixed" else None
    prompts = torch.tensor(workload.prompts)  # [sequences, prompt_tokens]
    _generate(model, prompts[:, :8], names, 3)
    return _generate(model, prompts, names, job.new_tokens)


def _with_adapters(model: PreTrainedModel, folders: tuple[Path, ...]) -> PeftModel:
    first, *others = folders
    wrapped = PeftModel.from_pretrained(model, str(first), adapter_name=first.name)
    for folder in others:
        wrapped.load_adapter(str(folder), folder.name)
    return wrapped


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
