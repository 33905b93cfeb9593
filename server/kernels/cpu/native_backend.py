"""The low-rank path by the native library: shrink and expand of a whole group in one call."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from server.kernels.backend import Stack, check_cover
from server.kernels.cpu.native import DTYPES, Lora, LoraMember, NativeKernels, Segment
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

    def prepare(self, segments: SegmentPlan) -> PreparedSegments:
        live = [item for item in segments.items if item.slot != NO_ADAPTER]
        array = (Segment * max(1, len(live)))(
            *((item.start, item.end - item.start, item.slot) for item in live)
        )
        return PreparedSegments(segments, array, len(live))

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
        members = (LoraMember * len(stacks))()
        for member, stack, out in zip(members, stacks, outs, strict=True):
            member.a = stack.a.data_ptr()
            member.b = stack.b.data_ptr()
            member.ranks = stack.ranks.data_ptr()
            member.out = out.data_ptr()
            member.out_features = out.shape[1]
            member.out_stride = out.stride(0)
        job = Lora(
            DTYPES[x.dtype],
            len(stacks),
            prepared.count,
            stacks[0].a.shape[1],
            x.shape[1],
            x.stride(0),
            x.data_ptr(),
            prepared.array,
            members,
        )
        self._kernels.lora_add(ctypes.byref(job))
