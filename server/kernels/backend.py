"""The interface of the batched low-rank path, and its plain-torch reference.

Source of the terms: SGMV, Punica, arXiv:2310.18547. For row t of slot s, with the adapter's
scale folded into `b` when it was laid out:

    y[t] = x[t] @ a[s].T          shrink, to rank r
    out[t] += y[t] @ b[s]         expand, back to the module's width
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from server.kernels.segments import NO_ADAPTER, SegmentPlan


class LowRankBackend(Protocol):
    """One implementation of shrink and expand.

    `prepare` is called once per step and its result handed to every shrink and expand of that
    step, so that what depends on the segments alone is worked out once, not per module.
    """

    name: str

    def prepare(self, segments: SegmentPlan) -> Any:
        """Whatever this backend wants to know of the step's segments."""
        ...

    def shrink(self, x: Tensor, a: Tensor, prepared: Any) -> Any:
        """x [tokens, in]; a [slots, max_rank, in] → y, in a form that `expand` takes.

        Rows of NO_ADAPTER are not computed. Raises ValueError if the segments do not cover x.
        """
        ...

    def expand(self, y: Any, b: Tensor, prepared: Any, out: Tensor) -> None:
        """y from `shrink`; b [slots, max_rank, out]; adds into out [tokens, out].

        Rows of NO_ADAPTER are left as they are, to the bit.
        """
        ...


class ReferenceBackend:
    """A loop over segments, each at its own adapter's rank: what every other form must equal."""

    name = "reference"

    def prepare(self, segments: SegmentPlan) -> SegmentPlan:
        return segments

    def shrink(self, x: Tensor, a: Tensor, prepared: SegmentPlan) -> Tensor:
        """y [tokens, max_rank], zero where the row has no adapter or the rank is exceeded."""
        check_cover(x, prepared)
        y = x.new_zeros(x.shape[0], a.shape[1])
        for item in prepared.items:
            if item.slot != NO_ADAPTER:
                rows = slice(item.start, item.end)
                y[rows, : item.rank] = x[rows] @ a[item.slot, : item.rank].T
        return y

    def expand(self, y: Tensor, b: Tensor, prepared: SegmentPlan, out: Tensor) -> None:
        for item in prepared.items:
            if item.slot != NO_ADAPTER:
                rows = slice(item.start, item.end)
                out[rows] += y[rows, : item.rank] @ b[item.slot, : item.rank]


def check_cover(x: Tensor, segments: SegmentPlan) -> None:
    """Raises ValueError if the segments do not cover the rows of x exactly."""
    if segments.tokens != x.shape[0]:
        raise ValueError(f"segments cover {segments.tokens} rows, x has {x.shape[0]}")


def default_backend(device: torch.device) -> LowRankBackend:
    """The fastest form there is for this device."""
    from server.kernels.cpu import CpuBackend

    return CpuBackend() if device.type == "cpu" else ReferenceBackend()
