"""Linear modules that read one input are one matmul, and give what each gave alone."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from server.engine.linears import LinearGroup, pack_head
from server.kernels.cpu.native import DTYPES, NativeKernels, load_native

KERNELS = [None, *load_native()[:1]]
each_form = pytest.mark.parametrize("kernels", KERNELS, ids=lambda k: k.name if k else "torch")


def modules(bias: bool, dtype: torch.dtype) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {name: nn.Linear(24, out, bias=bias) for name, out in {"q": 40, "k": 8, "v": 16}.items()}
    return {name: module.to(dtype).requires_grad_(False) for name, module in made.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["native", "onednn", "torch"])
def test_a_group_gives_what_its_modules_give(
    dtype: torch.dtype, bias: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "native" and (not load_native() or dtype not in DTYPES):
        pytest.skip("no native kernels for this")
    if form == "torch":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    own = modules(bias, dtype)
    x = torch.randn(1, 5, 24, dtype=dtype)
    expected = {name: module(x) for name, module in own.items()}
    group = LinearGroup(own, load_native()[0] if form == "native" else None)
    assert group.names == ("q", "k", "v")
    assert [s.out_features for s in group.shapes] == [40, 8, 16]
    for _ in range(2):
        for name, module in own.items():
            torch.testing.assert_close(module(x), expected[name])
    assert {m.weight.shape for m in own.values()} == {(40, 24), (8, 24), (16, 24)}
    assert {m.weight.dtype for m in own.values()} == {dtype}


@each_form
def test_only_some_of_a_group_have_a_bias(kernels: NativeKernels | None) -> None:
    own = modules(True, torch.float32)
    own["k"].bias = None
    x = torch.randn(3, 24)
    expected = [module(x) for module in own.values()]
    LinearGroup(own, kernels)
    for module, value in zip(own.values(), expected, strict=True):
        torch.testing.assert_close(module(x), value)


@each_form
def test_listeners_add_to_every_output(kernels: NativeKernels | None) -> None:
    own = modules(False, torch.float32)
    x = torch.randn(1, 4, 24)
    expected = [module(x) for module in own.values()]
    seen: list[Tensor] = []

    def add(rows: Tensor, outs: tuple[Tensor, ...]) -> None:
        seen.append(rows)
        for number, out in enumerate(outs):
            out += number + 1

    LinearGroup(own, kernels).on_output(add, None)
    for number, (module, value) in enumerate(zip(own.values(), expected, strict=True)):
        torch.testing.assert_close(module(x), value + number + 1)
    assert len(seen) == 1
    assert torch.equal(seen[0], x[0])


@each_form
def test_another_input_than_the_group_read_is_our_fault(kernels: NativeKernels | None) -> None:
    own = modules(False, torch.float32)
    LinearGroup(own, kernels)
    x = torch.randn(2, 24)
    own["q"](x)
    with pytest.raises(AssertionError, match="k reads another input"):
        own["k"](x.clone())


@each_form
def test_gpt2s_layout_and_no_rows(kernels: NativeKernels | None) -> None:
    module = Conv1D(6, 10).requires_grad_(False)
    x = torch.randn(1, 3, 10)
    expected = module(x)
    group = LinearGroup({"c_attn": module}, kernels)
    assert (group.shapes[0].in_features, group.shapes[0].out_features) == (10, 6)
    torch.testing.assert_close(module(x), expected)
    assert module(x[:, :0]).shape == (1, 0, 6)


@each_form
def test_a_tied_head_keeps_its_weight(kernels: NativeKernels | None) -> None:
    embedding = nn.Embedding(12, 8).requires_grad_(False)
    head = nn.Linear(8, 12, bias=False)
    head.weight = embedding.weight
    x = torch.randn(1, 2, 8)
    expected = head(x)
    pack_head(head, kernels)
    torch.testing.assert_close(head(x), expected)
    assert head(x[:, :0]).shape == (1, 0, 12)
    assert head.weight is embedding.weight
    torch.testing.assert_close(embedding(torch.tensor([3])), head.weight[3:4])
