"""Fused parts equal the modules they stand for; what differs keeps its own forward."""

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from server.engine.fused import fuse
from server.kernels.cpu.native import NativeKernels, load_native

pytestmark = pytest.mark.skipif(not load_native(), reason="the native library is not built")
DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2e-2, "atol": 1e-2}}


class Mlp(nn.Module):
    def __init__(self, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(20, 50), nn.Linear(20, 50)
        self.down_proj = nn.Linear(50, 20)
        self.act_fn = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class CentredRMSNorm(LlamaRMSNorm):
    """No RMS norm, whatever its name says."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states - hidden_states.mean(-1, keepdim=True))


def replaced(module: nn.Module) -> bool:
    return "forward" in vars(module)


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [LlamaRMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("width", [64, 37])
def test_rms_norms(
    norm: type[nn.Module], dtype: torch.dtype, width: int, kernels: NativeKernels
) -> None:
    module = norm(width).requires_grad_(False)
    nn.init.normal_(module.weight, mean=0.7)
    module.to(dtype)
    x = torch.randn(1, 6, 4, width * 2).to(dtype)[..., :width].transpose(1, 2)  # as q_norm's input
    expected = module(x)
    fuse(module, kernels)
    assert replaced(module)
    torch.testing.assert_close(module(x), expected, **CLOSE[dtype])


def test_a_norm_that_is_handed_another_dtype_runs_as_it_was() -> None:
    module = LlamaRMSNorm(64).requires_grad_(False).bfloat16()
    x = torch.randn(1, 5, 64)
    expected = module(x)
    fuse(module, load_native()[0])
    assert replaced(module)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_gated_mlps(activation: str, dtype: torch.dtype, kernels: NativeKernels) -> None:
    module = Mlp(activation).to(dtype).requires_grad_(False)
    x = (torch.randn(1, 7, 20) * 30).to(dtype)  # far out on both sides of the sigmoid
    expected = module(x)
    fuse(module, kernels)
    assert replaced(module)
    # Sums of large terms that cancel: what is close is measured by the largest of them.
    scale = expected.abs().max().item()
    torch.testing.assert_close(module(x) / scale, expected / scale, **CLOSE[dtype])


@pytest.mark.parametrize(
    "module", [Mlp("gelu"), Mlp("relu"), CentredRMSNorm(16), nn.LayerNorm(16)], ids=repr
)
def test_what_differs_is_left_alone(module: nn.Module) -> None:
    module.requires_grad_(False)
    fuse(module, load_native()[0])
    assert not replaced(module)


def test_values_that_are_not_finite_stay_so() -> None:
    module = Mlp("silu").requires_grad_(False)
    norm = LlamaRMSNorm(20).requires_grad_(False)
    fuse(module, load_native()[0])
    fuse(norm, load_native()[0])
    x = torch.randn(1, 3, 20)
    x[0, 1, 4] = float("nan")
    for out in (module(x), norm(x)):
        assert out[0, 1].isnan().all()
        assert out[0, [0, 2]].isfinite().all()
