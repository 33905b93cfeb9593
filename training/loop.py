"""One training run: a trainer of trl's or transformers', watched, stopped and resumed anywhere.

Here: train, Watch, Curves. Not here: the adapter (methods/), rows (rows.py), where checkpoints rest
(checkpoints.py), what is done with the result (run.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from training.best_weights import BestWeights
from training.classifier import Classifying, class_loss, padded
from training.distillation import Distilling, Teacher
from training.methods.optimizer import optimizer_groups
from training.methods.trainable import Trainable, after_step, progress, resume
from training.plan import Plan

TRAINED, STATE = "trained.safetensors", "trainer_state.json"  # in a checkpoint

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
    trainable: Trainable,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    rows: Dataset,
    held_out: Dataset | None,
    *,
    folder: Path,
    watch: Watch,
    checkpoint: Path | None = None,
    teacher: Teacher | None = None,
) -> tuple[Curves, Progress]:
    """Trains to the plan's end, or as early as it allows.

    `folder` takes the trainer's files. `checkpoint` is of the same plan, base and rows: the
    run goes on as if it had never ended, to the same bits on the same kind of machine and with
    the same number of threads. `teacher`: the plan's, if it has one.
    """
    watcher = _Watcher(watch, plan)
    best = []
    if plan.patience is not None and held_out is not None:
        best = [BestWeights(trainable, plan.patience)]
    model = trainable.model
    device = next(model.parameters()).device
    trainer_class, more = _kind(plan, tokenizer, teacher)
    trainer = trainer_class(
        trainable,
        _lengths(rows) if plan.group_by_length else None,
        model=model,
        args=_arguments(plan, folder, evaluate=held_out is not None, device=device),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        optimizers=(_optimizer(trainable, plan), None),
        # The watcher last: it ships what others add.
        callbacks=[_AfterStep(trainable), *best, watcher],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    state = trainer.state
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / STATE))
        for callback in best:
            callback.restore(checkpoint)
        watcher.restore(state)
    if checkpoint is not None and state.global_step >= plan.steps:
        resume(trainable, load_file(checkpoint / TRAINED))  # transformers would make one more step
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        state = trainer.state
    for callback in best:
        callback.put_back()
    return watcher.curves, watcher.progress(state)


def _kind(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, teacher: Teacher | None
) -> tuple[Any, dict[str, Any]]:
    """The trainer's class, and what only that one is told."""
    if plan.adapter.task == "classification":
        padding: Any = tokenizer.pad_token_id  # an int, as BaseFolder settles it
        collate = partial(padded, padding=padding)
        return _Classes, {"data_collator": collate, "compute_loss_func": class_loss}
    if teacher is not None:
        return _Taught, {"teacher": teacher}
    return (_Dpo if plan.preference else _Sft), {}


def _lengths(rows: Dataset) -> list[int]:
    if "input_ids" in rows.column_names:
        return [len(ids) for ids in rows["input_ids"]]
    columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
    return [len(p) + max(len(a), len(b)) for p, a, b in zip(*columns, strict=True)]


def _optimizer(trainable: Trainable, plan: Plan) -> torch.optim.Optimizer:
    groups = optimizer_groups(
        trainable.model,
        plan.adapter,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
    )
    return torch.optim.AdamW(groups)


def _arguments(
    plan: Plan, folder: Path, *, evaluate: bool, device: torch.device
) -> TrainingArguments:
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
    if plan.adapter.task == "classification":
        # What PEFT wraps does not say what it takes, so nothing is left to be guessed.
        known |= {"remove_unused_columns": False, "label_names": ["labels"]}
        return TrainingArguments(
            prediction_loss_only=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            **known,
        )
    known["max_length"] = plan.max_tokens
    if plan.preference:
        return DPOConfig(beta=plan.beta, **known)
    return SFTConfig(packing=plan.packing, eval_packing=False, shuffle_dataset=False, **known)


class _ByLength(LengthGroupedSampler):
    """transformers', but that batches are shuffled, and each epoch's order depends on the seed and
    the epoch alone: a run that goes on elsewhere in the middle of an epoch sees the same batches.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._draws = torch.Generator()
        super().__init__(batch_size, lengths=lengths, generator=self._draws)
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        batches = list(torch.tensor(list(super().__iter__())).split(self.batch_size))
        for at in torch.randperm(len(batches), generator=self._draws).tolist():
            yield from batches[at].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._draws.manual_seed(self._seed + epoch)


class _Trainer:
    """A trainer whose checkpoints hold what was trained, whole, and nothing of the base.

    transformers' own would hold all of a model that is not PEFT's, and lack what PEFT's files do.
    """

    def __init__(self, trainable: Trainable, lengths: list[int] | None, **arguments: Any) -> None:
        self._trainable = trainable
        self._lengths = lengths
        super().__init__(**arguments)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._lengths is None:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]  # trl's
        args: Any = self.args  # type: ignore[attr-defined]
        return _ByLength(self._lengths, args.train_batch_size, args.seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(progress(self._trainable), folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        resume(self._trainable, load_file(Path(resume_from_checkpoint, TRAINED)))

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """None: trl writes one with every checkpoint, and may look the base up at a hub."""


class _Sft(_Trainer, SFTTrainer):
    pass


class _Taught(Distilling, _Sft):
    pass


class _Classes(Classifying, _Trainer, Trainer):
    pass


class _Dpo(_Trainer, DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Rows have their tokens already, the very ones that the server would see."""
        return dataset


class _AfterStep(TrainerCallback):
    """What some methods do once the optimizer has stepped."""

    def __init__(self, trainable: Trainable) -> None:
        self._trainable = trainable

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        after_step(self._trainable, state.global_step)


class _Watcher(TrainerCallback):
    """Tells a Watch, and gathers the curves, which go along with every checkpoint."""

    def __init__(self, watch: Watch, plan: Plan) -> None:
        self.curves = Curves()
        self._watch = watch
        self._plan = plan
        self._logs: dict[str, Any] = {}
        self._tokens_before = 0  # those of the run's earlier workers: trl counts from 0 again

    def restore(self, state: TrainerState) -> None:
        """Takes up the curves from a checkpoint's log."""
        for entry in state.log_history:
            self._take(int(entry["step"]), entry)
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
