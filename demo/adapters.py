"""Trains the LoRA adapters, each on its own task, on the frozen base, with plain peft and torch.

Here: the adapters' shapes, the training loop. Not here: the tasks' words, evaluation.
The shapes differ on purpose: a server must batch them all at once.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.checkpoint import load_checkpoint, save_checkpoint
from demo.pretrain import IGNORED
from demo.tasks import Filled, Task

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BASE_NAME = "adapterd-demo"  # what the adapters' configs call the base; no path


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """One adapter's shape and how long it trains."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int = 350
    rows: int = 16
    lr: float = 3e-3
    more: dict = field(default_factory=dict)  # further fields of LoraConfig


# The longest first, so that all the processes are busy to the end.
PLANS: dict[str, AdapterPlan] = {
    "orders-json": AdapterPlan(32, 64, ATTENTION + MLP, steps=400, lr=2e-3),
    "formal": AdapterPlan(12, 24, ("q_proj", "v_proj", "up_proj", "down_proj"), steps=700),
    "clock": AdapterPlan(8, 16, ATTENTION, steps=900, lr=4e-3),
    "dates": AdapterPlan(16, 16, ATTENTION + MLP, more={"use_rslora": True}, steps=600, lr=2e-3),
    "intent": AdapterPlan(4, 8, (*ATTENTION, "down_proj"), steps=400, lr=4e-3),
}


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """One adapter to train: what, how, where its unfinished state lies, who hears of it."""

    task: Task
    plan: AdapterPlan
    seed: int
    checkpoint: Path
    progress: Callable[[int, float], None]  # called with the steps done and the last loss


def train_adapter(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, job: AdapterJob
) -> PeftModel:
    """The trained adapter around `base`, whose own weights stay as they are.

    Goes on from the job's checkpoint if there is one; batches depend on the seed, the task and
    the step alone.
    """
    plan, task = job.plan, job.task
    torch.manual_seed(job.seed)
    model = get_peft_model(base, lora_config(plan)).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.0)
    first = load_checkpoint(job.checkpoint, model, [optimiser]) if job.checkpoint.exists() else 0
    for step in range(first, plan.steps):
        rate = min(1.0, (step + 1) / 20, (plan.steps - step) / (0.5 * plan.steps))
        for group in optimiser.param_groups:
            group["lr"] = plan.lr * rate
        rng = Random(f"{job.seed} {task.name} {step}")
        batch = answer_batch(tokenizer, [task.train(rng) for _ in range(plan.rows)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        job.progress(step + 1, loss.item())
        if (step + 1) % 100 == 0:
            save_checkpoint(job.checkpoint, model, [optimiser], step + 1)
    return model.eval()


def lora_config(plan: AdapterPlan) -> LoraConfig:
    """PEFT's config of a plan."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=BASE_NAME,
        r=plan.rank,
        lora_alpha=plan.alpha,
        target_modules=list(plan.targets),
        lora_dropout=0.0,
        bias="none",
        **plan.more,
    )


def answer_batch(tokenizer: PreTrainedTokenizerFast, examples: list[Filled]) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels, each [examples, longest]; loss on the answers only."""
    prompts = [prompt_ids(tokenizer, example.prompt) for example in examples]
    answers = [tokenizer.encode(example.answer) + [tokenizer.eos_token_id] for example in examples]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    shape = (len(examples), longest)
    inputs = torch.full(shape, tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """A user's message through the chat template, up to where the answer begins."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """An ordinary PEFT folder: bf16 tensors, the config; nothing that names this machine."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert re.search(r"lora_[AB]", name), name
            parameter.data = parameter.data.to(torch.bfloat16)
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(folder, save_embedding_layers=False)  # False: looks nothing up online
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    _sort_targets(folder / "adapter_config.json")


def _sort_targets(path: Path) -> None:
    """PEFT writes a set in the order of its hashes; sorted, every run writes the same."""
    config = json.loads(path.read_text())
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
