"""Training state on disk, as safetensors: no pickle, and never a half-written file.

Here: weights, optimiser state and the step in one file. Not here: what is trained.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_checkpoint(
    path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], step: int
) -> None:
    """Writes the parameters that train, their optimisers' state and the count of steps done."""
    tensors = {f"model.{name}": p.detach() for name, p in _trained(model)}
    for number, optimiser in enumerate(optimisers):
        for index, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimiser.{number}.{index}.{key}"] = torch.as_tensor(value)
    partial = path.with_suffix(".safetensors.partial")
    save_file({key: t.contiguous() for key, t in tensors.items()}, partial, {"step": str(step)})
    os.replace(partial, path)


def load_checkpoint(
    path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]
) -> int:
    """Puts a checkpoint back; the steps that it has behind it."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        step = int(file.metadata()["step"])
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimiser in enumerate(optimisers):
        state = _state_of(tensors, f"optimiser.{number}.")
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _state_of(tensors: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[name] = value
    return state
