"""`python -m benchmarks.e2e_nlg.train`: a LoRA trained with transformers and peft, nothing of ours.

What comes out is an ordinary PEFT folder. Loss is on the sentence only; batches depend on the
seed alone.
"""

import math
import random
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.e2e_nlg.data import DataMissing, Facts, data_folder, development
from benchmarks.e2e_nlg.prompt import prompt_ids

ROOT = Path(__file__).resolve().parents[2]
DEMO_BASE = ROOT / "demo" / "artefacts" / "base"
ADAPTER = ROOT / "benchmarks" / ".work" / "e2e_nlg" / "adapter"
IGNORED = -100  # a label that no loss is counted for
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the adapter is trained."""

    steps: int
    rows: int = 16  # per step
    lr: float = 2e-3
    rank: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it. Losses are mean cross-entropies per token, in nats."""

    train_loss: float  # of the last tenth of the steps
    held_out_loss: float
    seconds: float


@app.command()
def main(
    base: Annotated[Path, typer.Option(help="Folder of the base model.")] = DEMO_BASE,
    out: Annotated[Path, typer.Option(help="Folder for the PEFT adapter.")] = ADAPTER,
    steps: Annotated[int, typer.Option(min=1)] = 900,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Trains on a seeded part of the development set and saves a PEFT folder."""
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # peft's, about transformers
    console = Console()
    try:
        folder = data_folder()
    except DataMissing as error:
        console.print(f"skipped: {error}")
        return
    trained = train(base, folder, out, Plan(steps=steps, seed=seed))
    console.print(
        f"loss {trained.train_loss:.3f}, held out {trained.held_out_loss:.3f}, "
        f"{trained.seconds:.0f} s"
    )


def train(base: Path, data: Path, out: Path, plan: Plan) -> Trained:
    """Trains, measures the loss on the held-out part, and saves to `out`."""
    started = time.perf_counter()
    torch.manual_seed(plan.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    split = development(data, seed=plan.seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = LoraConfig(
        r=plan.rank, lora_alpha=2 * plan.rank, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, options)
    train_loss = _fit(wrapped, _rows(tokenizer, split.train), tokenizer.pad_token_id, plan)
    held_out_loss = _loss_on(wrapped, _rows(tokenizer, split.held_out), tokenizer.pad_token_id)
    wrapped.peft_config["default"].base_model_name_or_path = base.name  # no path of this machine
    wrapped.save_pretrained(
        str(out), save_embedding_layers=False
    )  # else peft asks the hub about it
    return Trained(train_loss, held_out_loss, time.perf_counter() - started)


def _rows(
    tokenizer: PreTrainedTokenizerBase, facts: tuple[Facts, ...]
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids with the end token) of every pair."""
    end = tokenizer.encode(str(tokenizer.eos_token), add_special_tokens=False)
    return [
        (
            prompt_ids(tokenizer, one.mr),
            tokenizer.encode(reference, add_special_tokens=False) + end,
        )
        for one in facts
        for reference in one.references
    ]


def _fit(model: PeftModel, rows: list[tuple[list[int], list[int]]], pad: int, plan: Plan) -> float:
    """AdamW with warm-up and cosine decay, in bfloat16 autocast. Returns the last losses' mean."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=0.0)
    warm_up = max(1, plan.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)),
    )
    rng = random.Random(plan.seed)
    losses = []
    model.train()
    for _ in track(range(plan.steps), "training"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**_batch(rng.sample(rows, min(plan.rows, len(rows))), pad)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    last = losses[-max(1, plan.steps // 10) :]
    return sum(last) / len(last)


@torch.inference_mode()
def _loss_on(model: PeftModel, rows: list[tuple[list[int], list[int]]], pad: int) -> float:
    """Mean loss over at most 256 rows, in batches of 32."""
    model.eval()
    batches = [rows[start : start + 32] for start in range(0, min(len(rows), 256), 32)]
    losses = [model(**_batch(batch, pad)).loss.item() for batch in batches]
    return sum(losses) / len(losses)


def _batch(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels [rows, longest], padded on the right.

    Lengths are rounded up: oneDNN compiles a matmul for each that it meets.
    """
    longest = -(-max(len(prompt) + len(answer) for prompt, answer in rows) // 32) * 32
    inputs = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        inputs[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
        mask[row, :end] = 1
    return {"input_ids": inputs, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    app()
