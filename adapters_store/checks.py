"""Checks of tensors that hold for every kind of adapter.

Here: check_tensors. Not here: what a kind's tensors are called or shaped (the caller's Check).
"""

import torch
from torch import Tensor

from adapters_store.content import AdapterContent
from adapters_store.errors import InvalidAdapter
from adapters_store.strict_json import shorten

CHUNK = 1 << 20  # elements looked at at a time: memory stays flat however large a tensor is


def check_tensors(content: AdapterContent) -> None:
    """Raises InvalidAdapter if there is no tensor, or one holds NaN or infinity."""
    if not content.tensors:
        raise InvalidAdapter(
            "adapter_model.safetensors holds no tensor; save the adapter after training it, "
            "with model.save_pretrained(folder)"
        )
    for name, tensor in content.tensors.items():
        if not _finite(tensor):
            raise InvalidAdapter(
                f"tensor {shorten(name)} holds NaN or infinity: its training diverged. "
                "Train again with a lower learning rate or gradient clipping, or upload an "
                "earlier checkpoint"
            )


def _finite(tensor: Tensor) -> bool:
    flat = tensor.flatten()  # a view: stored tensors are contiguous
    return all(bool(torch.isfinite(part).all()) for part in flat.split(CHUNK))
