"""The native paged attention against a softmax in float64, over head shapes and chunks."""

import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from server.kernels.cpu.attention import paged_attention, write_kv
from server.kernels.cpu.native import NativeKernels, load_native

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
BLOCK = 16

pytestmark = pytest.mark.skipif(not load_native(), reason="the native library is not built")


@dataclass(frozen=True, eq=False)
class Case:
    """Chunks of some sequences, each with a paged cache that holds its context."""

    query: Tensor  # [rows, heads, key_dim]; the last rows are of no chunk
    own: list[tuple[Tensor, Tensor]]  # each sequence's keys and values [context, kv_heads, dim]
    keys: Tensor
    values: Tensor
    tables: Tensor
    starts: Tensor
    contexts: Tensor

    def run(self, kernels: NativeKernels, **extra) -> Tensor:
        shape = (*self.query.shape[:2], self.values.shape[3])
        out = torch.full(shape, 7.0, dtype=self.query.dtype)
        paged_attention(
            kernels,
            self.query,
            self.keys,
            self.values,
            self.tables,
            self.starts,
            self.contexts,
            out,
            scale=self.query.shape[2] ** -0.5,
            **extra,
        )
        return out


@functools.cache
def by_hand(case: Case, **extra) -> Tensor:
    """What `case.run` should give in the chunks' rows, in float64."""
    queries = [case.query[a:b] for a, b in itertools.pairwise(case.starts.tolist())]
    return torch.cat(
        [_by_hand(query, *own, **extra) for query, own in zip(queries, case.own, strict=True)]
    )


def _by_hand(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """query [rows, heads, dim], of the last tokens of keys and values [context, kv_heads, dim]."""
    query, keys, values = query.double(), keys.double(), values.double()
    rows, heads, dim = query.shape
    keys, values = (x.repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
    scores = torch.einsum("qhd,thd->hqt", query, keys) * dim**-0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(keys.shape[0])[-rows:, None] - torch.arange(keys.shape[0])
    seen = (behind >= 0) & (behind < (window or keys.shape[0]))
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        column = sinks.double().view(-1, 1, 1).expand(-1, rows, -1)
        scores = torch.cat([scores, column], dim=2)
    weights = scores.softmax(-1)[..., : keys.shape[0]]
    return torch.einsum("hqt,thd->qhd", weights, values)


@functools.cache
def make_case(
    dtype: torch.dtype,
    heads: tuple[int, int, int, int],  # heads, kv_heads, key_dim, value_dim
    chunks: tuple[tuple[int, int], ...],  # rows, context
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    heads_count, kv_heads, key_dim, value_dim = heads
    count, width = len(chunks), -(-max(context for _, context in chunks) // BLOCK)
    blocks = count * width + 1
    keys = torch.zeros(blocks, BLOCK, kv_heads, key_dim, dtype=dtype)
    values = torch.zeros(blocks, BLOCK, kv_heads, value_dim, dtype=dtype)
    keys[0], values[0] = float("nan"), float("nan")  # padding of the tables must not be read
    order = torch.randperm(blocks - 1, generator=generator) + 1
    tables = torch.zeros(count, width, dtype=torch.int64)
    own = []
    for row, (_, context) in enumerate(chunks):
        used = -(-context // BLOCK)
        tables[row, :used] = order[row * width : row * width + used]
        keys[tables[row, used - 1]] = values[tables[row, used - 1]] = float("nan")
        k, v = random(context, kv_heads, key_dim), random(context, kv_heads, value_dim)
        positions = torch.arange(context)
        places = tables[row, positions // BLOCK] * BLOCK + positions % BLOCK
        keys.flatten(0, 1)[places], values.flatten(0, 1)[places] = k, v
        own.append((k, v))
    starts = torch.tensor([0, *(rows for rows, _ in chunks)]).cumsum(0).int()
    query = random(heads_count, int(starts[-1]) + 2, key_dim).transpose(0, 1)
    contexts = torch.tensor([context for _, context in chunks])
    return Case(query, own, keys, values, tables, starts, contexts)


CHUNKS = {  # (rows, context)
    "decodes": ((1, 1), (1, 16), (1, 17), (1, 200), (1, 1500), *[(1, 33)] * 9),
    "whole prompts": ((2, 2), (7, 7), (64, 64), (65, 65), (130, 130)),
    "decodes and chunks": ((1, 1), (1, 300), (2, 90), (5, 64), (33, 65), (128, 190), (40, 700)),
}
HEADS = [
    (9, 3, 64, 64),
    (4, 4, 16, 16),
    (8, 1, 40, 24),
    (2, 2, 7, 130),
    (4, 2, 33, 80),
    (4, 1, 1, 5),
]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "extra",
    [{}, {"window": 20}, {"softcap": 5.0}, {"sinks": True}, {"window": 100, "softcap": 30.0}],
    ids=str,
)
@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
def test_equals_a_softmax_by_hand(
    kernels: NativeKernels,
    extra: dict,
    dtype: torch.dtype,
    chunks: str,
    heads: tuple[int, int, int, int],
) -> None:
    case = make_case(dtype, heads, CHUNKS[chunks])
    if extra.get("sinks"):
        extra = {"sinks": sinks_of(heads[0])}
    out, rows = case.run(kernels, **extra), int(case.starts[-1])
    torch.testing.assert_close(
        out[:rows].double(), by_hand(case, **extra), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )
    assert (out[rows:] == 7).all(), "rows of no chunk were written"


@functools.cache
def sinks_of(heads: int) -> Tensor:
    return torch.linspace(-1, 2, heads)


@pytest.mark.parametrize("extra", [{}, {"window": 4200}], ids=str)
@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
def test_a_context_that_is_cut_into_parts(kernels: NativeKernels, extra: dict) -> None:
    case = make_case(torch.float32, (2, 1, 8, 8), ((1, 8500), (40, 8300), (3, 4097)))
    out = case.run(kernels, **extra)[: int(case.starts[-1])]
    torch.testing.assert_close(out.double(), by_hand(case, **extra), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
def test_a_row_does_not_depend_on_what_shares_its_batch(
    kernels: NativeKernels, dtype: torch.dtype
) -> None:
    """To the bit, over other chunks, other cuts of the same prompt, and numbers of threads."""
    chunks = ((1, 1200), *[(1, 40)] * 9, (70, 150), (150, 400))
    together = make_case(dtype, (6, 2, 64, 64), chunks)
    expected, threads = together.run(kernels), torch.get_num_threads()
    for index, (count, context) in enumerate(chunks):
        first, half = int(together.starts[index]), (count + 1) // 2
        for cut in {count, half}:  # all rows of the chunk, or the first ones
            alone = Case(
                together.query[first : first + cut],
                [],
                together.keys,
                together.values,
                together.tables[index : index + 1],
                torch.tensor([0, cut], dtype=torch.int32),
                torch.tensor([context - count + cut]),
            )
            torch.set_num_threads(1 + index % 2)
            try:
                out = alone.run(kernels)
            finally:
                torch.set_num_threads(threads)
            assert torch.equal(out, expected[first : first + cut])


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
def test_keys_and_values_are_written_at_their_places(kernels: NativeKernels) -> None:
    key = torch.randn(3, 70, 5).transpose(0, 1)  # [tokens, kv_heads, dim], heads apart
    value = torch.randn(70, 3, 6)
    keys, values = torch.zeros(6, BLOCK, 3, 5), torch.zeros(6, BLOCK, 3, 6)
    places = torch.randperm(6 * BLOCK)[:70]
    write_kv(kernels, key, value, keys, values, places)
    assert torch.equal(keys.flatten(0, 1)[places], key)
    assert torch.equal(values.flatten(0, 1)[places], value)
    assert keys.count_nonzero() == key.count_nonzero()


@pytest.mark.parametrize("kernels", load_native(), ids=lambda k: k.name)
@pytest.mark.parametrize("counts", [(1, 1), (7, 8)], ids=str)
def test_a_key_that_is_not_finite_spoils_its_own_sequence_only(
    kernels: NativeKernels, counts: tuple[int, int]
) -> None:
    keys, values = torch.randn(3, BLOCK, 2, 8), torch.randn(3, BLOCK, 2, 8)
    keys[1, 3] = float("nan")
    rows = sum(counts)
    out = torch.empty(rows, 4, 8)
    tables = torch.tensor([[1], [2]])
    query = torch.randn(rows, 4, 8)
    starts = torch.tensor([0, *(rows for rows in counts)]).cumsum(0).int()
    contexts = torch.tensor([9, 9])
    paged_attention(kernels, query, keys, values, tables, starts, contexts, out, scale=0.3)
    assert out[counts[0] - 1].isnan().all()
    assert out[counts[0] :].isfinite().all()
