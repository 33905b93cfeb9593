"""Parts of a layer that cost a dozen passes in eager torch, done in one by the native kernels.

A part is recognised by what it has and accepted by what it does: its own forward and the kernel's
are compared on numbers before the kernel takes its place, instance by instance. Anything that
differs keeps its own forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.kernels.cpu.native import DTYPES, GELU_TANH, SILU, NativeKernels

CHECK_ROWS = 3


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """x / rms(x), times weight [width], or times 1 + weight as Gemma has it."""

    weight: Tensor
    eps: float
    plus_one: int


def fuse(model: nn.Module, kernels: NativeKernels) -> None:
    """Replaces the forward of every RMS norm and gated MLP that the kernels can stand for."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm = rms_norm_of(module, kernels)
            if norm is not None:
                module.forward = _norm_forward(norm, kernels, module.forward)
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            form = _gated_mlp(module, kernels)
            if form is not None and _equals(form, module):
                module.forward = form


def rms_norm_of(module: nn.Module, kernels: NativeKernels) -> RmsNorm | None:
    """What `module` does, if the kernels can do it too; None if it is something else."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    for plus_one in (0, 1):
        norm = RmsNorm(weight.detach(), eps, plus_one)
        if _equals(_norm_forward(norm, kernels, module.forward), module):
            return norm
    return None


def _equals(form: Callable[[Tensor], Tensor], module: nn.Module) -> bool:
    """Whether `form` gives what the module's own forward gives, but for rounding."""
    weight = next(module.parameters(), None)
    if weight is None or weight.dtype not in DTYPES or weight.device.type != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHECK_ROWS, weight.shape[-1], generator=generator).to(weight.dtype)
    with torch.inference_mode():
        try:
            own = module(x)
        except (TypeError, RuntimeError):  # takes something else than hidden states
            return False
        return close(form(x), own)


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two results of one computation differ by rounding alone."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    tolerance = 1e-5 if theirs.dtype == torch.float32 else 2e-2
    ours, theirs = ours.float(), theirs.float()
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def _norm_forward(
    norm: RmsNorm, kernels: NativeKernels, own: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    width, dtype = norm.weight.shape[0], DTYPES.get(norm.weight.dtype)

    def forward(hidden_states: Tensor) -> Tensor:
        if hidden_states.dtype != norm.weight.dtype:  # an architecture that keeps these in float32
            return own(hidden_states)
        x = hidden_states.contiguous()
        out = torch.empty_like(x)
        kernels.rms_norm(
            dtype,
            x.data_ptr(),
            norm.weight.data_ptr(),
            out.data_ptr(),
            x.numel() // width,
            width,
            norm.eps,
            norm.plus_one,
        )
        return out

    return forward


def _gated_mlp(module: Any, kernels: NativeKernels) -> Callable[[Tensor], Tensor] | None:
    gate_proj, up_proj, down_proj = module.gate_proj, module.up_proj, module.down_proj
    activation = activation_of(module.act_fn)
    if activation is None:
        return None

    def forward(hidden_states: Tensor) -> Tensor:
        gate, up = gate_proj(hidden_states), up_proj(hidden_states)
        return down_proj(gated(gate, up, activation, kernels))

    return forward


def activation_of(function: Callable[[Tensor], Tensor]) -> int | None:
    """Its number in the native library, by what it gives; None where it is another."""
    x = torch.linspace(-6, 6, 97)
    given = function(x)
    for number, known in (
        (SILU, nn.functional.silu(x)),
        (GELU_TANH, nn.functional.gelu(x, approximate="tanh")),
    ):
        if torch.allclose(given, known, rtol=1e-6, atol=1e-6):
            return number
    return None


def gated(gate: Tensor, up: Tensor, activation: int, kernels: NativeKernels) -> Tensor:
    """activation(gate) · up, both [..., width] with rows any distance apart → contiguous."""
    width = gate.shape[-1]
    gates, ups = gate.view(-1, width), up.view(-1, width)
    out = gate.new_empty(gate.shape)
    kernels.gated(
        DTYPES[gate.dtype],
        activation,
        gates.data_ptr(),
        ups.data_ptr(),
        out.data_ptr(),
        gates.shape[0],
        width,
        gates.stride(0),
        ups.stride(0),
    )
    return out
