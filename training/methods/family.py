"""What every family of methods offers: attach, export, detach.

Here: Family, Start, Files. Not here: any method.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from training.plan import AdapterPlan

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Each call: the training batches from the first, {input_ids, attention_mask, labels}, each
[examples, tokens]; labels of -100 are not learned."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a method may draw on besides the base and the plan."""

    total_steps: int  # optimizer steps that the training will make
    batches: Batches | None

    def training_batches(self, method: str) -> Batches:
        """For a method that needs them."""
        if self.batches is None:
            raise ValueError(f"{method} is initialised from training batches: give attach some")
        return self.batches


@dataclass(frozen=True, slots=True)
class Files:
    """An adapter as it is saved."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]  # adapter_config.json, but for the base's name


@dataclass(frozen=True, slots=True)
class Family:
    attach: Callable[[PreTrainedModel, AdapterPlan, Start], nn.Module]
    """The model to train; what it does before the first step, the base does. Takes its random
    numbers from torch's generator. Raises InvalidRequest."""
    export: Callable[[nn.Module, AdapterPlan], Files]
    detach: Callable[[nn.Module], PreTrainedModel]
    """The base, with its own modules and weights."""
