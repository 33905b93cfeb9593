"""Early stopping that keeps the best weights, across a change of worker too.

Here: BestWeights. transformers' own early stopping needs the best checkpoint to stay on its disk;
here the best weights go along with every checkpoint.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.methods.trainable import Trainable, progress, resume

WEIGHTS, STATE = "best.safetensors", "best.json"


class BestWeights(TrainerCallback):
    """Stops after `patience` evaluations without a lower loss."""

    def __init__(self, trainable: Trainable, patience: int) -> None:
        self._trainable = trainable
        self._patience = patience
        self._loss = float("inf")
        self._since = 0  # evaluations since the best
        self._weights: dict[str, torch.Tensor] = {}

    def restore(self, checkpoint: Path) -> None:
        """Takes up what an earlier run had put there; nothing, if it had not evaluated yet."""
        if not (checkpoint / STATE).exists():
            return
        state = json.loads((checkpoint / STATE).read_text())
        self._loss, self._since = state["loss"], state["since"]
        self._weights = load_file(checkpoint / WEIGHTS)

    def put_back(self) -> None:
        """Makes the model's weights the best ones, if any were found."""
        if self._weights:
            resume(self._trainable, self._weights)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """A run that had stopped already, and was gone on with, stops again."""
        control.should_training_stop |= self._since >= self._patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        if loss < self._loss:
            self._loss, self._since = loss, 0
            self._weights = progress(self._trainable)
        else:
            self._since += 1
            control.should_training_stop |= self._since >= self._patience

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._weights:
            folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
            save_file(self._weights, folder / WEIGHTS)
            (folder / STATE).write_text(json.dumps({"loss": self._loss, "since": self._since}))
