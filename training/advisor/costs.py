"""What a run takes: memory and time, from what was counted and measured in a probe.

Here: Cost, cost, full_bytes, available_bytes, kept_for_backward. Not here: probes.

Memory is weights, gradients, AdamW's two moments (float32, as all that is trained) and what the
forward pass keeps; the allocator's slack and the code are not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.advisor.evidence import Probe

FLOAT32 = 4
TRAINED = 3 * FLOAT32  # a gradient and two moments
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a job on the whole file."""

    bytes: int
    seconds: float
    steps: int
    adapter_bytes: int  # of what is saved, in float32


def cost(probe: Probe, *, base_bytes: int, base_parameters: int, steps: int) -> Cost:
    """`steps`: of a job on the whole file, with the probe's batches."""
    trained = probe.parameters
    weights = base_parameters * FLOAT32 if probe.method == "full" else base_bytes + trained * 4
    return Cost(
        bytes=weights + trained * TRAINED + probe.activation_bytes,
        seconds=probe.seconds_per_step * steps,
        steps=steps,
        adapter_bytes=trained * FLOAT32,
    )


def full_bytes(model: Any, activations: int) -> int:
    """What full fine-tuning would take, a copy of the weights for the spectrum among it."""
    parameters = sum(one.numel() for one in model.parameters())
    return parameters * (2 * FLOAT32 + TRAINED) + activations


def available_bytes(device: torch.device) -> int | None:
    """Of the memory that a model on this device would use; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMORY.exists():
        return None
    lines = (line.split() for line in _MEMORY.read_text().splitlines())
    return next((int(line[1]) << 10 for line in lines if line[0] == "MemAvailable:"), None)


def kept_for_backward(model: Any, batch: Mapping[str, Tensor]) -> int:
    """Bytes that a forward pass over `batch` keeps for its backward pass, parameters aside."""
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    moved = {name: one.to(model.device) for name, one in batch.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**moved).loss  # noqa: B018 - what it kept is counted while it lives
    return sum(seen.values())
