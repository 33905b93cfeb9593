"""The base's linear modules as the server runs them: those that read one input as one matmul.

q, k and v read the same hidden states, and so do gate and up. Their weights are laid side by side
once, packed for the CPU (by the native library, or by oneDNN where it is not built), and computed
together when the first of them is called; the others hand out their columns. Modules, names and
classes stay as transformers made them: only `forward` of each instance is another, so adapters and
architectures need not know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters_store.content import LinearShape
from server.engine.row_buckets import rows_for
from server.kernels.cpu.native import NativeKernels
from server.kernels.cpu.packed_linear import PackedLinear

PACKED_ROWS = 16
"""The batch that oneDNN lays packed weights out for: decodes, where reading them is the cost."""

OnOutput = Callable[[Tensor, Sequence[Tensor]], None]
"""Called with the input [tokens, in] and each module's output [tokens, out_i], to add into."""


class LinearGroup:
    """Linear modules that read one and the same input, in the order in which they are called.

    Must stay true: whoever calls one of them with an input calls all of them with it, in order.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        kernels: NativeKernels | None,
        *,
        quantize: bool = False,
    ) -> None:
        """Takes the modules over. Their own weights become views, or give their memory back.

        `quantize` packs them as int8, which takes kernels.
        """
        self.modules = tuple(modules.values())
        self.names = tuple(modules)
        self.shapes = tuple(linear_shape(module) for module in modules.values())
        self._widths = [shape.out_features for shape in self.shapes]
        self.hooks: list[Any] = []  # native.Hook of each listener, or None where it has none
        self._listeners: list[OnOutput] = []
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()
        self._matmul = _matmul(self.modules, kernels, quantize=quantize)
        for index, module in enumerate(modules.values()):
            module.forward = self._lead if index == 0 else self._follower(index)

    @property
    def packed(self) -> PackedLinear | None:
        """The native form of the matmul, where it has one."""
        return self._matmul if isinstance(self._matmul, PackedLinear) else None

    def on_output(self, listener: OnOutput, hook: Any | None) -> None:
        """From now on `listener` sees, and may add to, what the modules give.

        `hook`, the same as a native Hook, is what runs instead where the whole layer is native.
        """
        self._listeners.append(listener)
        self.hooks.append(hook)

    def _lead(self, input: Tensor) -> Tensor:
        x = input.reshape(-1, input.shape[-1])
        out = self._matmul(x)
        outputs = out.split_with_sizes(self._widths, 1) if len(self._widths) > 1 else (out,)
        for listener in self._listeners:
            listener(x, outputs)
        if len(self._widths) > 1:
            self._input, self._outputs = input, outputs
        return outputs[0].view(*input.shape[:-1], self._widths[0])

    def _follower(self, index: int) -> Callable[[Tensor], Tensor]:
        last = index == len(self._widths) - 1

        def forward(input: Tensor) -> Tensor:
            assert input is self._input, f"{self.names[index]} reads another input than its group"
            output = self._outputs[index]
            if last:
                self._input, self._outputs = None, ()
            return output.view(*input.shape[:-1], self._widths[index])

        return forward


def linear_shape(module: nn.Module) -> LinearShape:
    """In and out features of a linear module of any class that is served."""
    if isinstance(module, Conv1D):
        return LinearShape(module.nx, module.nf)
    assert isinstance(module, nn.Linear)
    return LinearShape(module.in_features, module.out_features)


def pack_head(head: nn.Linear, kernels: NativeKernels | None, *, quantize: bool = False) -> None:
    """Packs a module that no adapter targets. Its own weight, which may be tied, stays."""
    matmul = _matmul((head,), kernels, quantize=quantize, keep=True)
    width = head.out_features

    def forward(input: Tensor) -> Tensor:
        x = input.reshape(-1, input.shape[-1])
        padding = 0 if kernels is not None else rows_for(x.shape[0]) - x.shape[0]
        if padding:
            x = nn.functional.pad(x, (0, 0, 0, padding))
        return matmul(x)[: x.shape[0] - padding].view(*input.shape[:-1], width)

    head.forward = forward


def _matmul(
    modules: Sequence[Any],
    kernels: NativeKernels | None,
    *,
    quantize: bool,
    keep: bool = False,
) -> Callable[[Tensor], Tensor]:
    """x [tokens, in] → all modules' outputs side by side [tokens, out].

    With `keep` the modules' own weights stay as they are (somebody else reads them).
    """
    weights = [_weight(module) for module in modules]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    biases = [module.bias for module in modules]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                weight.new_zeros(linear_shape(module).out_features) if b is None else b.detach()
                for module, b in zip(modules, biases, strict=True)
            ]
        )
    if kernels is None:
        assert not quantize, "only the native kernels multiply by int8"
        matmul = _packed(weight, bias)
    else:
        matmul = PackedLinear(kernels, weight, bias, quantize=quantize)
    if matmul is None:
        if len(modules) > 1:
            _become_views(modules, weight)
        return lambda x: nn.functional.linear(x, weight, bias)
    if not keep:
        for module in modules:
            # Shape, dtype and device stay readable; the memory is the packed copy's.
            module.weight.data = module.weight.data.new_zeros(()).expand(module.weight.shape)
    return matmul


def _weight(module: Any) -> Tensor:
    """[out, in], detached."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def _become_views(modules: Sequence[Any], weight: Tensor) -> None:
    start = 0
    for module in modules:
        rows = weight[start : start + linear_shape(module).out_features]
        module.weight.data = rows.T if isinstance(module, Conv1D) else rows
        start += rows.shape[0]


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """The product with weight [out, in] in oneDNN's own layout; None where there is none for it.

    Source: torch/_inductor/fx_passes/mkldnn_fusion.py, which packs frozen weights by the same
    two operators.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float32):
        return None
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
    x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype).unsqueeze(0)
    own = nn.functional.linear(x, weight)
    theirs = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    close = torch.allclose(own.float(), theirs.float(), rtol=1e-2, atol=1e-2 * float(own.std()))
    if not close:
        return None
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x: linear(x, packed, bias, "none", [], "")
