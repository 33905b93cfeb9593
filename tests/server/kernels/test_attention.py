"""The native paged attention against a softmax in float64, over head shapes and context lengths."""

import pytest
import torch
from torch import Tensor

from server.kernels.cpu.attention import decode_attention, write_kv
from server.kernels.cpu.native import NativeKernels, load_native

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BLOCK = 16

pytestmark = pytest.mark.skipif(not load_native(), reason="the native library is not built")


def by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """query [heads, dim]; keys, values [context, kv_heads, dim] → [heads, value_dim], float64."""
    query, keys, values = query.double(), keys.double(), values.double()
    if window is not None:
        keys, values = keys[-window:], values[-window:]
    share = query.shape[0] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1), values.repeat_interleave(share, 1)
    scores = torch.einsum("hd,thd->ht", query, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], dim=1)
    weights = scores.softmax(-1)[:, : keys.shape[0]]
    return torch.einsum("ht,thd->hd", weights, values)


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "key_dim", "value_dim"),
    [(9, 3, 64, 64), (4, 4, 16, 16), (8, 1, 40, 24), (2, 2, 7, 130)],
)
@pytest.mark.parametrize("contexts", [[1, 16, 17, 200], [1500], [33] * 20], ids=str)
@pytest.mark.parametrize(
    "extra",
    [{}, {"window": 20}, {"softcap": 5.0}, {"sinks": True}, {"window": 700, "softcap": 30.0}],
    ids=str,
)
def test_equals_a_softmax_by_hand(
    kernels: NativeKernels,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    contexts: list[int],
    extra: dict,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    count, width = len(contexts), -(-max(contexts) // BLOCK)
    blocks = count * width + 1
    keys = torch.zeros(blocks, BLOCK, kv_heads, key_dim, dtype=dtype)
    values = torch.zeros(blocks, BLOCK, kv_heads, value_dim, dtype=dtype)
    keys[0], values[0] = float("nan"), float("nan")  # padding of the tables must not be read
    order = torch.randperm(blocks - 1, generator=generator) + 1
    tables = torch.zeros(count, width, dtype=torch.int64)
    own = []
    for row, context in enumerate(contexts):
        used = -(-context // BLOCK)
        tables[row, :used] = order[row * width : row * width + used]
        k, v = random(context, kv_heads, key_dim), random(context, kv_heads, value_dim)
        positions = torch.arange(context)
        places = tables[row, positions // BLOCK] * BLOCK + positions % BLOCK
        write_kv(kernels, k, v, keys, values, places)
        own.append((k, v))
    query = random(heads, count, key_dim).transpose(0, 1)
    sinks = torch.randn(heads, generator=generator) if extra.get("sinks") else None
    out = torch.empty(count, heads, value_dim, dtype=dtype)
    window, softcap, scale = extra.get("window"), extra.get("softcap"), key_dim**-0.5

    decode_attention(
        kernels,
        query,
        keys,
        values,
        tables,
        torch.tensor(contexts),
        out,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )

    expected = torch.stack(
        [by_hand(query[row], k, v, scale, window, softcap, sinks) for row, (k, v) in enumerate(own)]
    )
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
def test_a_key_that_is_not_finite_spoils_its_own_sequence_only(kernels: NativeKernels) -> None:
    keys, values = torch.randn(3, BLOCK, 2, 8), torch.randn(3, BLOCK, 2, 8)
    keys[1, 3] = float("nan")
    out = torch.empty(2, 4, 8)
    tables = torch.tensor([[1], [2]])
    query = torch.randn(2, 4, 8)
    decode_attention(kernels, query, keys, values, tables, torch.tensor([9, 9]), out, scale=0.3)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
