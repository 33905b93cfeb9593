"""Bottleneck adapters: a small MLP with a residual, after the MLP of every decoder layer.

Here: the modules, attached by forward hooks, and their files; PEFT has no such method. Not here:
serving them.

Houlsby et al. 2019 (arXiv:1902.00751): h + up(f(down(h))), near the identity at first; here `up`
is zero, so exactly. Pfeiffer et al. 2020 (arXiv:2005.00247): one a layer, after the MLP, ReLU.

Tensors are named base_model.model.<the MLP's path>.bottleneck.{down,up}.{weight,bias}: down
[size, width], up [width, size].
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters_store.errors import InvalidRequest
from training.methods.family import Family, Files, Start
from training.plan import AdapterPlan

NAME = "bottleneck"
PREFIX = "base_model.model."
PEFT_TYPE = "BOTTLENECK"
MLPS = frozenset({"mlp", "feed_forward", "ffn", "block_sparse_moe"})


class Bottleneck(nn.Module):
    """h ↦ h + up(relu(down(h))), in float32; h [..., width]. `enabled` is False: h."""

    def __init__(self, width: int, size: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.dropout = nn.Dropout(dropout)
        self.enabled = True
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.enabled:
            return hidden
        inner = self.dropout(torch.relu(self.down(hidden.to(self.down.weight.dtype))))
        return (hidden + self.up(inner)).to(hidden.dtype)


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PreTrainedModel:
    base.requires_grad_(False)
    _insert(base, plan.rank, plan.dropout)
    return base


def _insert(base: PreTrainedModel, size: int, dropout: float = 0.0) -> None:
    """Raises InvalidRequest if the base's layers have no MLP of their own."""
    found = [mlp for path, mlp in base.named_modules() if _is_layers_mlp(path)]
    if not found:
        raise InvalidRequest(
            "adapterd.peft.method: the base's layers have no MLP that a bottleneck could follow; "
            "use lora",
            param="adapterd.peft.method",
        )
    width = base.config.get_text_config().hidden_size
    for mlp in found:
        device = next(mlp.parameters()).device
        mlp.add_module(NAME, Bottleneck(width, size, dropout).to(device))
        mlp.register_forward_hook(_follow)


def _is_layers_mlp(path: str) -> bool:
    """ "model.layers.3.mlp", but no expert within it."""
    parts = path.split(".")
    return len(parts) > 1 and parts[-1] in MLPS and parts[-2].isdigit()


def _follow(mlp: nn.Module, _: Any, output: Any) -> Any:
    after = mlp.get_submodule(NAME)
    if isinstance(output, tuple):  # experts give their router's scores too
        return (after(output[0]), *output[1:])
    return after(output)


def _bottlenecks(model: nn.Module) -> Iterator[tuple[str, Bottleneck]]:
    for path, module in model.named_modules():
        if isinstance(module, Bottleneck):
            yield path, module


@contextmanager
def without_bottlenecks(model: nn.Module) -> Iterator[None]:
    """Within it the model is the base."""
    modules = [module for _, module in _bottlenecks(model)]
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module in modules:
            module.enabled = True


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    tensors = {
        f"{PREFIX}{path}.{name}": tensor
        for path, module in _bottlenecks(model)
        for name, tensor in module.state_dict().items()
    }
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "bottleneck_size": plan.rank,
        "non_linearity": "relu",
        "target_modules": sorted({path.split(".")[-2] for path, _ in _bottlenecks(model)}),
        "inference_mode": True,
    }
    return Files(tensors, config)


def _detach(model: nn.Module) -> PreTrainedModel:
    assert isinstance(model, PreTrainedModel)
    for path, _ in list(_bottlenecks(model)):
        mlp = model.get_submodule(path.rpartition(".")[0])
        for key, hook in list(mlp._forward_hooks.items()):
            if hook is _follow:
                del mlp._forward_hooks[key]
        delattr(mlp, NAME)
    return model


def load_bottlenecks(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base with the adapter that was saved in `folder`, to be used and not trained."""
    config = json.loads((folder / "adapter_config.json").read_text())
    _insert(base, config["bottleneck_size"])
    tensors = load_file(folder / "adapter_model.safetensors")
    for path, module in _bottlenecks(base):
        prefix = f"{PREFIX}{path}."
        own = {name: tensors.pop(prefix + name) for name in module.state_dict()}
        module.load_state_dict(own)
        module.requires_grad_(False)
    if tensors:
        raise ValueError(f"the base has no place for {min(tensors)}")
    return base.eval()


BOTTLENECK = Family(_attach, _export, _detach)
