"""The native library's paged attention and its cache writes, as functions of tensors."""

import ctypes

import torch
from torch import Tensor

from server.kernels.cpu.native import DTYPES, Attention, KvWrite, NativeKernels


def paged_attention(
    kernels: NativeKernels,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    query_starts: Tensor,
    contexts: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """Each row attends to its own sequence up to itself, straight from blocks.

    The rows of chunk i are query_starts[i] up to query_starts[i + 1], the last ones of the
    contexts[i] first tokens of a sequence; there may be rows after the last chunk's.

    query [rows, heads, key_dim], last dimension dense; keys [blocks, block_size, kv_heads,
    key_dim], values [blocks, block_size, kv_heads, value_dim]; tables [chunks, blocks] int64;
    query_starts [chunks + 1] int32; contexts [chunks] int64; sinks [heads] float32;
    out [rows, heads, value_dim], dense, written in the chunks' rows only.
    `window`: tokens seen at most, the row's own included. Softmax in float32.
    """
    heads, key_dim = query.shape[1:]
    assert query.stride(2) == 1 and out.is_contiguous() and tables.stride(1) == 1
    assert query_starts.dtype == torch.int32
    job = Attention(
        DTYPES[query.dtype],
        contexts.shape[0],
        heads,
        keys.shape[2],
        key_dim,
        values.shape[3],
        keys.shape[1],
        tables.stride(0),
        query.stride(0),
        query.stride(1),
        window or 0,
        scale,
        softcap or 0.0,
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        tables.data_ptr(),
        query_starts.data_ptr(),
        contexts.data_ptr(),
        None if sinks is None else sinks.data_ptr(),
        out.data_ptr(),
    )
    kernels.paged_attention(ctypes.byref(job))


def write_kv(
    kernels: NativeKernels,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
) -> None:
    """Copies a step's keys and values into the cache.

    key [tokens, kv_heads, key_dim]; value [tokens, kv_heads, value_dim];
    places [tokens] int64: block · block_size + offset. Last dimensions dense.
    """
    assert key.stride(2) == 1 and value.stride(2) == 1
    job = KvWrite(
        DTYPES[key.dtype],
        key.shape[0],
        key.shape[1],
        key.shape[2],
        value.shape[2],
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        key.data_ptr(),
        value.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        places.data_ptr(),
    )
    kernels.kv_write(ctypes.byref(job))
