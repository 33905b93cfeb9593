"""LoRA: W x + scale · B A x, for any number of adapters in one step.

The update is added by a forward hook on each targetable module, so the base's modules, names and
weights stay as transformers made them. Source: LoRA, arXiv:2106.09685; batched as in Punica,
arXiv:2310.18547.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from server.adapters.methods.base import HostAdapter, SlotLimits, rows_of
from server.adapters.methods.lora_config import LoraModule, read_lora
from server.kernels.backend import LowRankBackend
from server.kernels.segments import SegmentPlan


class LoraMethod:
    """PEFT's LORA."""

    kind = "lora"
    peft_type = "LORA"

    def check(self, content: AdapterContent, base: BaseModel, *, max_rank: int) -> AdapterFacts:
        modules = read_lora(content, base, max_rank=max_rank)
        return AdapterFacts(
            kind=self.kind,
            rank=max(module.rank for module in modules),
            target_modules=tuple(sorted({module.name.rpartition(".")[2] for module in modules})),
            bytes=sum(tensor.nbytes for tensor in content.tensors.values()),
            report={
                "modules": len(modules),
                "modules_of_base": len(base.modules),
                "ranks": sorted({module.rank for module in modules}),
                "scales": sorted({module.scale for module in modules}),
            },
        )

    def lay_out(
        self, content: AdapterContent, base: BaseModel, *, max_rank: int, dtype: torch.dtype
    ) -> HostAdapter:
        modules = read_lora(content, base, max_rank=max_rank)
        layout = {module.name: _lay_out(module, dtype) for module in modules}
        return HostAdapter(
            digest=content.digest,
            kind=self.kind,
            rank=max(module.rank for module in modules),
            bytes=sum(a.nbytes + b.nbytes for a, b in layout.values()),
            layout=layout,
        )

    def bind(
        self,
        modules: Mapping[str, nn.Module],
        base: BaseModel,
        *,
        limits: SlotLimits,
        dtype: torch.dtype,
        device: torch.device,
        backend: LowRankBackend,
    ) -> "BoundLora":
        return BoundLora(modules, base, limits, dtype, device, backend)


def _lay_out(module: LoraModule, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """a [rank, in], and b [rank, out] with the scale in it; copies, pinned where CUDA is.

    The scale is multiplied in at float32, so that a low-precision base rounds once.
    """
    a = module.a.to(dtype, copy=True).contiguous()
    b = (module.b.to(torch.float32) * module.scale).T.to(dtype).contiguous()
    if torch.cuda.is_available():
        return a.pin_memory(), b.pin_memory()
    return a, b


class _ModuleSlots:
    """One module's stacked tensors. Rows at or above a slot's rank are zero, always."""

    def __init__(
        self, shape: LinearShape, limits: SlotLimits, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Zeroed pages are not backed by memory until written: unused slots cost nothing on a CPU.
        sizes = (limits.slots, limits.max_rank)
        self.a = torch.zeros(*sizes, shape.in_features, dtype=dtype, device=device)
        self.b = torch.zeros(*sizes, shape.out_features, dtype=dtype, device=device)
        self.ranks = [0] * limits.slots

    def write(self, slot: int, pair: tuple[Tensor, Tensor] | None) -> None:
        rank = 0 if pair is None else pair[0].shape[0]
        old = self.ranks[slot]
        if old > rank:
            self.a[slot, rank:old].zero_()
            self.b[slot, rank:old].zero_()
        if pair is not None:
            self.a[slot, :rank].copy_(pair[0], non_blocking=True)
            self.b[slot, :rank].copy_(pair[1], non_blocking=True)
        self.ranks[slot] = rank


class BoundLora:
    """LoRA's slots on one base. `write` never runs while a step does (the engine's one thread)."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        base: BaseModel,
        limits: SlotLimits,
        dtype: torch.dtype,
        device: torch.device,
        backend: LowRankBackend,
    ) -> None:
        self._backend = backend
        self._prepared: Any = None
        self._live: frozenset[int] = frozenset()
        self._stacks: dict[str, _ModuleSlots] = {}
        for name, module in modules.items():
            stack = _ModuleSlots(base.modules[name], limits, dtype, device)
            self._stacks[name] = stack
            module.register_forward_hook(self._hook(stack))

    def write(self, slot: int, adapter: HostAdapter) -> None:
        unknown = adapter.layout.keys() - self._stacks.keys()
        assert not unknown, f"laid out for modules that are not bound: {sorted(unknown)[:3]}"
        for name, stack in self._stacks.items():
            stack.write(slot, adapter.layout.get(name))

    def clear(self, slot: int) -> None:
        for stack in self._stacks.values():
            stack.write(slot, None)

    def begin_step(self, segments: SegmentPlan) -> None:
        self._live = segments.live_slots
        self._prepared = self._backend.prepare(segments) if self._live else None

    def end_step(self) -> None:
        self._live = frozenset()
        self._prepared = None

    def _hook(self, stack: _ModuleSlots) -> Any:
        def add_delta(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not any(stack.ranks[slot] for slot in self._live):
                return
            y = self._backend.shrink(rows_of(args[0]), stack.a, self._prepared)
            self._backend.expand(y, stack.b, self._prepared, rows_of(output))

        return add_delta
