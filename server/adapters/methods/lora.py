"""LoRA: W x + scale · B A x, for any number of adapters in one step.

The update is added to what the base's linear modules give, those that read one input together;
the base's weights are never touched. Source: LoRA, arXiv:2106.09685; batched as in Punica,
arXiv:2310.18547.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, _foreach_copy_, _foreach_zero_  # pyright: ignore[reportPrivateImportUsage]

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from server.adapters.methods.base import AdaptedLinears, HostAdapter, Layout
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
    """a [rank, in], and b [rank, out] with the scale in it; copies.

    The scale is multiplied in at float32, so that a low-precision base rounds once.
    """
    a = module.a.to(dtype, copy=True).contiguous()
    b = (module.b.to(torch.float32) * module.scale).T.to(dtype).contiguous()
    return a, b


class _ModuleRows:
    """One module's stack. A slot's rows at or above its rank in this module are zero, always."""

    def __init__(
        self,
        shape: LinearShape,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        ranks: tuple[Tensor, Tensor | None],  # [slots]: on the host, and on a device that is not it
    ) -> None:
        # Zeroed pages are not backed by memory until written: unused rows cost nothing on a CPU.
        self.stack = Stack(
            a=torch.zeros(rows, shape.in_features, dtype=dtype, device=device),
            b=torch.zeros(rows, shape.out_features, dtype=dtype, device=device),
            ranks=ranks[0],
            device_ranks=ranks[1],
        )
        self._written = bytearray(rows)  # 1: by an adapter, which may have gone since

    def give(self, rows: range, rank: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of `rows`, a's and b's that an adapter of this rank fills, and those it must wipe."""
        start, end = rows.start, rows.start + rank
        stale = max(end, self._written.rfind(1, end, rows.stop) + 1)
        self._written[start:stale] = b"\1" * rank + bytes(stale - end)
        stack = self.stack
        filled = [stack.a[start:end], stack.b[start:end]] if rank else []
        return filled, [stack.a[end:stale], stack.b[end:stale]] if end < stale else []


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
        count = sum(len(group.names) for group in linears)
        self._ranks = torch.zeros(count, limits.slots, dtype=torch.int32)
        self._device_ranks = None if device.type == "cpu" else self._ranks.to(device)
        for group in linears:
            modules = [
                _ModuleRows(shape, limits.rows, dtype, device, self._ranks_at(number))
                for number, shape in enumerate(group.shapes, len(self._modules))
            ]
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

    def _ranks_at(self, module: int) -> tuple[Tensor, Tensor | None]:
        on_device = self._device_ranks
        return self._ranks[module], None if on_device is None else on_device[module]

    def _put(self, place: SlotPlace, layout: Layout, source: object) -> None:
        """One call for all copies: a step waits for them, and not for an interpreter between."""
        ranks: list[int] = []
        filled: list[Tensor] = []
        wiped: list[Tensor] = []
        given: list[Tensor] = []
        for name, module in self._modules.items():
            pair = layout.get(name, ())
            ranks.append(len(pair[0]) if pair else 0)
            fill, wipe = module.give(place.rows, ranks[-1])
            filled += fill
            given += pair
            wiped += wipe
        with self._copies.into(place.slot, source):
            self._starts.put(place.slot, place.rows.start)
            if filled:
                _foreach_copy_(filled, given, non_blocking=True)
            if wiped:
                _foreach_zero_(wiped)
            column = torch.tensor(ranks, dtype=torch.int32)
            self._ranks[:, place.slot] = column
            if self._device_ranks is not None:
                self._device_ranks[:, place.slot] = column

    def _adder(self, stacks: tuple[Stack, ...]) -> Callable[[Tensor, Sequence[Tensor]], None]:
        def add(x: Tensor, outs: Sequence[Tensor]) -> None:
            if self._live:
                self._backend.add(x, stacks, outs, self._prepared)

        return add
