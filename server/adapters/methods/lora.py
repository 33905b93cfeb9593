"""LoRA: W x + scale · B A x, for any number of adapters in one step.

The update is added to what the base's linear modules give, those that read one input together;
the base's weights are never touched. Source: LoRA, arXiv:2106.09685; batched as in Punica,
arXiv:2310.18547.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from server.adapters.methods.base import AdaptedLinears, HostAdapter, SlotLimits
from server.adapters.methods.lora_config import LoraModule, read_lora
from server.adapters.methods.lora_report import lora_report
from server.adapters.slot_copies import slot_copies
from server.kernels.backend import LowRankBackend, Stack
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
            report=lora_report(modules, base),
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
        linears: Sequence[AdaptedLinears],
        *,
        limits: SlotLimits,
        dtype: torch.dtype,
        device: torch.device,
        backend: LowRankBackend,
    ) -> "BoundLora":
        return BoundLora(linears, limits, dtype, device, backend)


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
    """One module's stack. Rows at or above a slot's rank are zero, always."""

    def __init__(
        self, shape: LinearShape, limits: SlotLimits, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Zeroed pages are not backed by memory until written: unused slots cost nothing on a CPU.
        sizes = (limits.slots, limits.max_rank)
        self.stack = Stack(
            a=torch.zeros(*sizes, shape.in_features, dtype=dtype, device=device),
            b=torch.zeros(*sizes, shape.out_features, dtype=dtype, device=device),
            ranks=torch.zeros(limits.slots, dtype=torch.int32),
            device_ranks=(
                None
                if device.type == "cpu"
                else torch.zeros(limits.slots, dtype=torch.int32, device=device)
            ),
        )

    def write(self, slot: int, pair: tuple[Tensor, Tensor] | None) -> None:
        a, b, ranks = self.stack.a, self.stack.b, self.stack.ranks
        rank = 0 if pair is None else pair[0].shape[0]
        old = int(ranks[slot])
        if old > rank:
            a[slot, rank:old].zero_()
            b[slot, rank:old].zero_()
        if pair is not None:
            a[slot, :rank].copy_(pair[0], non_blocking=True)
            b[slot, :rank].copy_(pair[1], non_blocking=True)
        ranks[slot] = rank
        if self.stack.device_ranks is not None and rank != old:
            self.stack.device_ranks[slot].fill_(rank)


class BoundLora:
    """LoRA's slots on one base. `write` never runs while a step does (the engine's one thread)."""

    def __init__(
        self,
        linears: Sequence[AdaptedLinears],
        limits: SlotLimits,
        dtype: torch.dtype,
        device: torch.device,
        backend: LowRankBackend,
    ) -> None:
        self._backend = backend
        self._copies = slot_copies(device)
        self._prepared: Any = None
        self._live = False  # whether any row of the step has an adapter
        self._slots: dict[str, _ModuleSlots] = {}
        for group in linears:
            slots = [_ModuleSlots(shape, limits, dtype, device) for shape in group.shapes]
            self._slots.update(zip(group.names, slots, strict=True))
            stacks = tuple(each.stack for each in slots)
            group.on_output(self._adder(stacks), backend.hook(stacks))

    def write(self, slot: int, adapter: HostAdapter) -> None:
        unknown = adapter.layout.keys() - self._slots.keys()
        assert not unknown, f"laid out for modules that are not bound: {sorted(unknown)[:3]}"
        with self._copies.into(slot, adapter):
            for name, slots in self._slots.items():
                slots.write(slot, adapter.layout.get(name))

    def clear(self, slot: int) -> None:
        with self._copies.into(slot, None):
            for slots in self._slots.values():
                slots.write(slot, None)

    def await_copies(self, segments: SegmentPlan) -> None:
        self._copies.await_slots(segments.live_slots)

    def begin_step(self, segments: SegmentPlan) -> None:
        self._prepared = self._backend.prepare(segments)
        self._live = bool(segments.live_slots)

    def end_step(self) -> None:
        self._live = False

    def _adder(self, stacks: tuple[Stack, ...]) -> Callable[[Tensor, Sequence[Tensor]], None]:
        def add(x: Tensor, outs: Sequence[Tensor]) -> None:
            if self._live:
                self._backend.add(x, stacks, outs, self._prepared)

        return add
