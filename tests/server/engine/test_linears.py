"""Linear modules that read one input are one matmul, and give what each gave alone."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from server.engine.linears import LinearGroup, pack_head


def modules(bias: bool, dtype: torch.dtype) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    made = {name: nn.Linear(24, out, bias=bias) for name, out in {"q": 40, "k": 8, "v": 16}.items()}
    return {name: module.to(dtype).requires_grad_(False) for name, module in made.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_a_group_gives_what_its_modules_give(
    dtype: torch.dtype, bias: bool, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packing:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    own = modules(bias, dtype)
    x = torch.randn(1, 5, 24, dtype=dtype)
    expected = {name: module(x) for name, module in own.items()}
    group = LinearGroup(own)
    assert group.names == ("q", "k", "v")
    assert [s.out_features for s in group.shapes] == [40, 8, 16]
    for _ in range(2):
        for name, module in own.items():
            torch.testing.assert_close(module(x), expected[name])
    assert {m.weight.shape for m in own.values()} == {(40, 24), (8, 24), (16, 24)}
    assert {m.weight.dtype for m in own.values()} == {dtype}


def test_only_some_of_a_group_have_a_bias() -> None:
    own = modules(True, torch.float32)
    own["k"].bias = None
    x = torch.randn(3, 24)
    expected = [module(x) for module in own.values()]
    LinearGroup(own)
    for module, value in zip(own.values(), expected, strict=True):
        torch.testing.assert_close(module(x), value)


def test_listeners_add_to_every_output() -> None:
    own = modules(False, torch.float32)
    x = torch.randn(1, 4, 24)
    expected = [module(x) for module in own.values()]
    seen: list[Tensor] = []

    def add(rows: Tensor, outs: tuple[Tensor, ...]) -> None:
        seen.append(rows)
        for number, out in enumerate(outs):
            out += number + 1

    LinearGroup(own).on_output(add)
    for number, (module, value) in enumerate(zip(own.values(), expected, strict=True)):
        torch.testing.assert_close(module(x), value + number + 1)
    assert len(seen) == 1
    assert torch.equal(seen[0], x[0])


def test_another_input_than_the_group_read_is_our_fault() -> None:
    own = modules(False, torch.float32)
    LinearGroup(own)
    x = torch.randn(2, 24)
    own["q"](x)
    with pytest.raises(AssertionError, match="k reads another input"):
        own["k"](x.clone())


def test_gpt2s_layout_and_no_rows() -> None:
    module = Conv1D(6, 10).requires_grad_(False)
    x = torch.randn(1, 3, 10)
    expected = module(x)
    group = LinearGroup({"c_attn": module})
    assert (group.shapes[0].in_features, group.shapes[0].out_features) == (10, 6)
    torch.testing.assert_close(module(x), expected)
    assert module(x[:, :0]).shape == (1, 0, 6)


def test_a_tied_head_keeps_its_weight() -> None:
    embedding = nn.Embedding(12, 8).requires_grad_(False)
    head = nn.Linear(8, 12, bias=False)
    head.weight = embedding.weight
    x = torch.randn(1, 2, 8)
    expected = head(x)
    pack_head(head)
    torch.testing.assert_close(head(x), expected)
    assert head(x[:, :0]).shape == (1, 0, 12)
    assert head.weight is embedding.weight
    torch.testing.assert_close(embedding(torch.tensor([3])), head.weight[3:4])
