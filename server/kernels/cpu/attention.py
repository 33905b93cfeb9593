"""The native library's paged attention and its cache writes, as functions of tensors."""

import ctypes

from torch import Tensor

from server.kernels.cpu.native import DTYPES, Attention, KvWrite, NativeKernels


def decode_attention(
    kernels: NativeKernels,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    contexts: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """One query row of each sequence attends to its `contexts` first tokens, straight from blocks.

    query [sequences, heads, key_dim], last dimension dense; keys [blocks, block_size, kv_heads,
    key_dim], values [blocks, block_size, kv_heads, value_dim]; tables [sequences, blocks] int64;
    contexts [sequences] int64; sinks [heads] float32; out [sequences, heads, value_dim], dense.
    `window`: tokens seen at most, the row's own included. Softmax in float32.
    """
    sequences, heads, key_dim = query.shape
    assert query.stride(2) == 1 and out.is_contiguous()
    job = Attention(
        DTYPES[query.dtype],
        sequences,
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
