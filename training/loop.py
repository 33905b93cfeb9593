"""One training run: trl's trainers with a plan, watched, and stopped and gone on with anywhere.

Here: train, Watch, Curves. Not here: the adapter (methods/), rows (rows.py), where checkpoints rest
(checkpoints.py), what is done with the result (run.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from training.best_weights import BestWeights
from training.plan import Plan

LOGGED_POINTS = 200
"""Of a run's loss curve, about."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is."""

    step: int  # optimizer steps done
    steps: int  # in all
    epoch: float
    loss: float | None  # mean since it was last logged
    tokens: int  # trained on so far, padding aside


@dataclass(frozen=True, slots=True)
class Curves:
    """What was measured on the way: (step, loss), losses in nats a learned token.

    Of preference runs, the losses are DPO's.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    eval: list[tuple[int, float]] = field(default_factory=list)


class Watch(Protocol):
    """Who hears of a run. What is raised here ends the run and reaches `train`'s caller."""

    def on_step(self, progress: Progress) -> bool:
        """After each optimizer step; true asks for a checkpoint at once."""
        ...

    def on_eval(self, step: int, loss: float) -> None: ...

    def on_checkpoint(self, folder: Path, step: int, metrics: dict[str, Any]) -> None:
        """A whole checkpoint lies in `folder`, which goes when this returns."""
        ...


def train(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    rows: Dataset,
    held_out: Dataset | None,
    *,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    watch: Watch,
    callbacks: Sequence[TrainerCallback] = (),
    resume: Path | None = None,
) -> tuple[Curves, Progress]:
    """Trains what of `model` requires a gradient, to the plan's end or as early as it allows.

    `folder` takes the trainer's files. `resume` is a checkpoint of the same plan, base and rows: the
    run goes on as if it had never ended, to the same bits on the same kind of machine and with the
    same number of threads.
    """
    watcher = _Watcher(watch, plan)
    best = [BestWeights(model, plan.patience)] if plan.patience and held_out is not None else []
    trainer_class = _Dpo if plan.preference else _Sft
    trainer = trainer_class(
        model=model,
        args=_arguments(plan, folder, evaluate=held_out is not None, device=_device(model)),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        callbacks=[*callbacks, *best, watcher],  # the watcher last: it ships what others add
    )
    trainer.remove_callback(PrinterCallback)
    if resume is not None:
        for callback in best:
            callback.restore(resume)
        watcher.restore(resume)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    for callback in best:
        callback.put_back()
    return watcher.curves, watcher.progress(trainer.state)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _arguments(
    plan: Plan, folder: Path, *, evaluate: bool, device: torch.device
) -> SFTConfig | DPOConfig:
    rows = plan.batch_size // plan.accumulation
    known: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": plan.seed,
        "max_steps": plan.steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "learning_rate": plan.learning_rate,
        "warmup_steps": math.ceil(plan.warmup_ratio * plan.steps),
        "lr_scheduler_type": plan.scheduler,
        "max_grad_norm": plan.max_grad_norm,
        "max_length": plan.max_tokens,
        "logging_steps": max(1, plan.steps // LOGGED_POINTS),
        "eval_strategy": "steps" if evaluate and plan.eval_every else "no",
        "eval_steps": plan.eval_every or None,
        "save_strategy": "steps",
        "save_steps": plan.checkpoint_every,
        "save_total_limit": 1,
        # Frozen weights have their own dtype, trained ones float32; autocast only where it is fast.
        "bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(),
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda",
        "disable_tqdm": True,
        "report_to": "none",
    }
    if plan.preference:
        return DPOConfig(beta=plan.beta, **known)
    return SFTConfig(packing=plan.packing, eval_packing=False, shuffle_dataset=False, **known)


class _Sft(SFTTrainer):
    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """None: trl writes one with every checkpoint, and may look the base up at a hub."""


class _Dpo(DPOTrainer):
    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """As above."""

    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Rows have their tokens already, the very ones that the server would see."""
        return dataset


class _Watcher(TrainerCallback):
    """Tells a Watch, and gathers the curves, which go along with every checkpoint."""

    def __init__(self, watch: Watch, plan: Plan) -> None:
        self.curves = Curves()
        self._watch = watch
        self._plan = plan
        self._logs: dict[str, Any] = {}
        self._tokens_before = 0  # those of the run's earlier workers: trl counts from 0 again

    def restore(self, folder: Path) -> None:
        """Takes up the curves from a checkpoint's log."""
        state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        for entry in state.log_history:
            self._take(entry["step"], entry)
        self._tokens_before = self._tokens()

    def progress(self, state: TrainerState) -> Progress:
        return Progress(
            step=state.global_step,
            steps=self._plan.steps,
            epoch=round(state.epoch or 0.0, 4),
            loss=self._logs.get("loss"),
            tokens=self._tokens(),
        )

    def _tokens(self) -> int:
        return int(self._logs.get("num_tokens", 0))

    def _take(self, step: int, logs: dict[str, Any]) -> None:
        self._logs |= logs
        if "loss" in logs:
            self.curves.train.append((step, float(logs["loss"])))
        if "eval_loss" in logs:
            self.curves.eval.append((step, float(logs["eval_loss"])))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        entry = state.log_history[-1]  # what a checkpoint will tell
        if "num_tokens" in entry:
            entry["num_tokens"] += self._tokens_before
        self._take(state.global_step, entry)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._watch.on_step(self.progress(state)):
            control.should_save = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.curves.eval:
            self._watch.on_eval(*self.curves.eval[-1])

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        self._watch.on_checkpoint(folder, state.global_step, dict(self._logs))
