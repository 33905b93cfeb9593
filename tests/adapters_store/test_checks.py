import pytest
import torch

from adapters_store.checks import CHUNK, check_tensors
from adapters_store.content import AdapterContent
from adapters_store.errors import InvalidAdapter


def content(**tensors: torch.Tensor) -> AdapterContent:
    return AdapterContent("0" * 64, {}, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_names_the_tensor_that_is_not_finite(dtype, bad):
    tensor = torch.ones(2, 13, dtype=dtype)
    tensor[1, 7] = bad
    with pytest.raises(
        InvalidAdapter, match=r"tensor 'worse' holds NaN or infinity.*learning rate"
    ):
        check_tensors(content(fine=torch.ones(3), worse=tensor))


@pytest.mark.parametrize("at", [0, CHUNK - 1, CHUNK, -1])
def test_looks_at_every_part_of_a_large_tensor(at):
    tensor = torch.ones(2, CHUNK + 3, dtype=torch.float16)
    tensor.view(-1)[at] = float("nan")
    with pytest.raises(InvalidAdapter, match="'large'"):
        check_tensors(content(large=tensor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_takes_finite_tensors_to_their_extremes(dtype):
    info = torch.finfo(dtype)
    edges = torch.tensor([info.max, info.min, info.tiny, 0.0], dtype=dtype)
    check_tensors(content(a=edges, scalar=torch.tensor(1.0), empty=torch.ones(0)))


def test_an_adapter_without_tensors_is_refused():
    with pytest.raises(InvalidAdapter, match=r"no tensor; .*save_pretrained"):
        check_tensors(content())
