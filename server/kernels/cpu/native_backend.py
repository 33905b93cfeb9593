"""The low-rank path by the native library: shrink and expand of a whole group in one call."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from server.kernels.backend import SlotStarts, Stack, check_cover
from server.kernels.cpu.native import (
    DTYPES,
    Hook,
    Lora,
    LoraHook,
    LoraMember,
    NativeKernels,
    Segment,
    Segments,
)
from server.kernels.segments import NO_ADAPTER, SegmentPlan


@dataclass(frozen=True, slots=True)
class PreparedSegments:
    """A step's segments as the library reads them, those without an adapter left out."""

    plan: SegmentPlan
    array: Any  # ctypes array of Segment
    count: int


class NativeBackend:
    """float32 and bfloat16 on the CPU; sums in float32."""

    def __init__(self, kernels: NativeKernels) -> None:
        self.name = f"native-{kernels.name}"
        self._kernels = kernels
        self._step = Segments()  # what hooks read, whichever group is theirs
        self._kept: list[Any] = []  # what hooks point to

    def prepare(self, segments: SegmentPlan, starts: SlotStarts) -> PreparedSegments:
        live = [item for item in segments.items if item.slot != NO_ADAPTER]
        array = (Segment * max(1, len(live)))(
            *(
                (item.start, item.end - item.start, item.slot, starts.host[item.slot])
                for item in live
            )
        )
        prepared = PreparedSegments(segments, array, len(live))
        self._step.count, self._step.first = len(live), array
        return prepared

    def hook(self, stacks: Sequence[Stack]) -> Hook:
        members = (LoraMember * len(stacks))(*(_member(stack) for stack in stacks))
        widths = [stack.b.shape[1] for stack in stacks]
        columns = (ctypes.c_int64 * len(stacks))(*accumulate(widths[:-1], initial=0))
        a = stacks[0].a
        job = Lora(DTYPES[a.dtype], len(stacks), 0, a.shape[1], member=members)
        context = LoraHook(job, columns, ctypes.pointer(self._step))
        self._kept.append(context)
        return Hook(self._kernels.lora_hook, ctypes.addressof(context))

    def add(
        self,
        x: Tensor,
        stacks: Sequence[Stack],
        outs: Sequence[Tensor],
        prepared: PreparedSegments,
    ) -> None:
        check_cover(x, prepared.plan)
        if not prepared.count:
            return
        assert x.stride(1) == 1 and all(out.stride(1) == 1 for out in outs)
        members = (LoraMember * len(stacks))(*(_member(stack) for stack in stacks))
        for member, out in zip(members, outs, strict=True):
            member.out = out.data_ptr()
            member.out_stride = out.stride(0)
        job = Lora(
            DTYPES[x.dtype],
            len(stacks),
            prepared.count,
            x.shape[1],
            x.stride(0),
            x.data_ptr(),
            prepared.array,
            members,
        )
        self._kernels.lora_add(ctypes.byref(job))


def _member(stack: Stack) -> LoraMember:
    """Without where its update goes."""
    return LoraMember(
        stack.a.data_ptr(),
        stack.b.data_ptr(),
        stack.ranks.data_ptr(),
        out_features=stack.b.shape[1],
    )
