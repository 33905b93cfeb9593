"""A linear module's weight, packed for the native library, as a function of tensors."""

import ctypes

import torch
from torch import Tensor

from server.kernels.cpu.native import DTYPES, Linear, NativeKernels


class PackedLinear:
    """x [rows, in] → x · weightᵀ + bias [rows, out].

    A row's result depends on that row alone: not on the number of rows, nor of threads. Quantised,
    the weight is int8 times a float32 scale for each output: the largest |w| of it / 127.
    """

    def __init__(
        self,
        kernels: NativeKernels,
        weight: Tensor,
        bias: Tensor | None,
        *,
        quantize: bool = False,
    ) -> None:
        """weight [out, in] and bias [out], float32 or bfloat16, are copied."""
        self._kernels = kernels
        self._dtype = weight.dtype
        out_features, in_features = weight.shape
        dtype, weight = DTYPES[weight.dtype], weight.contiguous()
        numbers = kernels.packed_numbers(dtype, out_features, in_features)
        self._packed = weight.new_empty(numbers, dtype=torch.int8 if quantize else None)
        source, packed = weight.data_ptr(), self._packed.data_ptr()
        whole_panels = -(-out_features // kernels.panel) * kernels.panel
        self._scales = None
        if quantize:
            self._scales = torch.zeros(whole_panels)
            scales = self._scales.data_ptr()
            kernels.quantize(dtype, source, packed, scales, out_features, in_features)
        else:
            kernels.pack(dtype, source, packed, out_features, in_features)
        self._bias = None
        if bias is not None:
            self._bias = torch.zeros(whole_panels)
            self._bias[:out_features] = bias.float()
        self.job = Linear(
            dtype,
            in_features,
            out_features,
            packed,
            None if self._bias is None else self._bias.data_ptr(),
            None if self._scales is None else self._scales.data_ptr(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        assert x.dtype == self._dtype and x.shape[1] == self.job.in_features
        if x.stride(1) != 1:
            x = x.contiguous()
        out = x.new_empty(x.shape[0], self.job.out_features)
        self._kernels.linear(
            ctypes.byref(self.job),
            x.data_ptr(),
            x.stride(0),
            out.data_ptr(),
            out.stride(0),
            x.shape[0],
        )
        return out
