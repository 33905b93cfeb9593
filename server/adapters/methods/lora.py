"""LoRA: W x + scale · B A x, for any number of adapters in one step.

The update is added to what the base's linear modules give, those that read one input together;
the base's weights are never touched. Source: LoRA, arXiv:2106.09685; batched as in Punica,
arXiv:2310.18547.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from server.adapters.methods.base import AdaptedLinears, HostAdapter
from server.adapters.methods.lora_config import LoraModule, read_lora
from server.adapters.methods.lora_report import lora_report
from server.adapters.slot_copies import slot_copies
from server.adapters.slot_rows import SlotLimits
from server.adapters.slots import SlotPlace
from server.kernels.backend import LowRankBackend, SlotStarts, Stack
from server.kernels.segments import SegmentPlan


class LoraMethod:
    """PEFT's LORA."""

    kind = "lora"
    peft_type = "LORA"

    def check(
        self, content: AdapterContent, base: BaseModel, *, limits: SlotLimits
    ) -> AdapterFacts:
        modules = read_lora(content, base, limits=limits)
        return AdapterFacts(
            kind=self.kind,
            rank=max(module.rank for module in modules),
            target_modules=tuple(sorted({module.name.rpartition(".")[2] for module in modules})),
            bytes=sum(tensor.nbytes for tensor in content.tensors.values()),
            report=lora_report(modules, base),
        )

    def lay_out(
        self, content: AdapterContent, base: BaseModel, *, limits: SlotLimits, dtype: torch.dtype
    ) -> HostAdapter:
        modules = read_lora(content, base, limits=limits)
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


class _ModuleRows:
    """One module's stack. A slot's rows at or above its rank in this module are zero, always."""

    def __init__(
        self, shape: LinearShape, limits: SlotLimits, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Zeroed pages are not backed by memory until written: unused rows cost nothing on a CPU.
        self.stack = Stack(
            a=torch.zeros(limits.rows, shape.in_features, dtype=dtype, device=device),
            b=torch.zeros(limits.rows, shape.out_features, dtype=dtype, device=device),
            ranks=torch.zeros(limits.slots, dtype=torch.int32),
            device_ranks=(
                None
                if device.type == "cpu"
                else torch.zeros(limits.slots, dtype=torch.int32, device=device)
            ),
        )
        self._written = bytearray(limits.rows)  # 1: by an adapter, which may have gone since

    def write(self, place: SlotPlace, pair: tuple[Tensor, Tensor] | None) -> None:
        """Copies a [rank, in] and b [rank, out], or nothing, and wipes what is left of the rows."""
        rank = 0 if pair is None else pair[0].shape[0]
        start, stop = place.rows.start, place.rows.stop
        end = start + rank
        self._wipe(end, self._written.rfind(1, end, stop) + 1)
        if pair is not None:
            self.stack.a[start:end].copy_(pair[0], non_blocking=True)
            self.stack.b[start:end].copy_(pair[1], non_blocking=True)
            self._written[start:end] = b"\1" * rank
        changed = int(self.stack.ranks[place.slot]) != rank
        self.stack.ranks[place.slot] = rank
        if self.stack.device_ranks is not None and changed:
            self.stack.device_ranks[place.slot].fill_(rank)

    def _wipe(self, start: int, stop: int) -> None:
        if start < stop:
            self.stack.a[start:stop].zero_()
            self.stack.b[start:stop].zero_()
            self._written[start:stop] = bytes(stop - start)


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
        self._starts = SlotStarts(limits.slots, device)
        self._modules: dict[str, _ModuleRows] = {}
        for group in linears:
            modules = [_ModuleRows(shape, limits, dtype, device) for shape in group.shapes]
            self._modules.update(zip(group.names, modules, strict=True))
            stacks = tuple(each.stack for each in modules)
            group.on_output(self._adder(stacks), backend.hook(stacks))

    def write(self, place: SlotPlace, adapter: HostAdapter) -> None:
        unknown = adapter.layout.keys() - self._modules.keys()
        assert not unknown, f"laid out for modules that are not bound: {sorted(unknown)[:3]}"
        self._put(place, adapter.layout, source=adapter)

    def clear(self, place: SlotPlace) -> None:
        self._put(place, {}, source=None)

    def await_copies(self, segments: SegmentPlan) -> None:
        self._copies.await_slots(segments.live_slots)

    def begin_step(self, segments: SegmentPlan) -> None:
        self._prepared = self._backend.prepare(segments, self._starts)
        self._live = bool(segments.live_slots)

    def end_step(self) -> None:
        self._live = False

    def _put(
        self, place: SlotPlace, layout: Mapping[str, tuple[Tensor, Tensor]], source: object
    ) -> None:
        with self._copies.into(place.slot, source):
            self._starts.put(place.slot, place.rows.start)
            for name, module in self._modules.items():
                module.write(place, layout.get(name))

    def _adder(self, stacks: tuple[Stack, ...]) -> Callable[[Tensor, Sequence[Tensor]], None]:
        def add(x: Tensor, outs: Sequence[Tensor]) -> None:
            if self._live:
                self._backend.add(x, stacks, outs, self._prepared)

        return add
