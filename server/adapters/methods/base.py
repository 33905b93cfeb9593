"""What an adapter kind is to the rest of the server.

A kind checks an adapter's config and tensors, lays them out in host memory, and binds itself to
the base once, giving a device-side store of slots that applies itself to each step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from adapters_store.content import AdapterContent, AdapterFacts, BaseModel, LinearShape
from server.adapters.slot_rows import SlotLimits
from server.adapters.slots import SlotPlace
from server.kernels.backend import LowRankBackend
from server.kernels.segments import SegmentPlan

Layout = Mapping[str, tuple[Tensor, ...]]
"""Contiguous tensors by module of the base."""


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """One version, checked and laid out for a slot, in host memory.

    What `layout` holds by module is the kind's own; only its BoundMethod reads it.
    """

    digest: str
    kind: str
    rank: int  # the largest over its modules: what its slot is sized by
    bytes: int
    layout: Layout

    def pinned(self) -> "HostAdapter":
        """A copy that a device can fetch while the host goes on. Needs CUDA."""
        layout = {name: tuple(t.pin_memory() for t in own) for name, own in self.layout.items()}
        return replace(self, layout=layout)


class AdaptedLinears(Protocol):
    """Linear modules of the base that read one input; adapters add to what they give."""

    names: tuple[str, ...]
    shapes: tuple[LinearShape, ...]  # theirs

    def on_output(
        self, listener: Callable[[Tensor, Sequence[Tensor]], None], hook: Any | None
    ) -> None:
        """`listener(x, outs)` is called at every step: x [tokens, in], outs[i] [tokens, out_i].

        `hook` (native.Hook) does the same where a whole layer runs natively; a kind that has none
        gives None, and layers stay as they are.
        """
        ...


class BoundMethod(Protocol):
    """A kind bound to one base: its stacked slots, and the hooks that apply them."""

    def write(self, place: SlotPlace, adapter: HostAdapter) -> None:
        """Puts the adapter there. The caller guarantees that nobody holds a lease on the slot, nor
        on any that had some of these rows."""
        ...

    def clear(self, place: SlotPlace) -> None:
        """Leaves nothing of this kind there: another kind's adapter moves in."""
        ...

    def await_copies(self, segments: SegmentPlan) -> None:
        """What is enqueued from now on sees the slots of these segments as they were written.

        Called before `begin_step`, outside of what a CUDA graph captures. The host does not wait.
        """
        ...

    def begin_step(self, segments: SegmentPlan) -> None:
        """From here until `end_step` the base's forward applies these segments."""
        ...

    def end_step(self) -> None:
        """The base's forward is the base's alone again."""
        ...


class AdapterMethod(Protocol):
    """One kind of adapter."""

    kind: str  # "lora"
    peft_type: str  # as adapter_config.json has it: "LORA"

    def check(
        self, content: AdapterContent, base: BaseModel, *, limits: SlotLimits
    ) -> AdapterFacts:
        """Raises InvalidAdapter or UnsupportedAdapter naming the tensor or key, and the remedy."""
        ...

    def lay_out(
        self, content: AdapterContent, base: BaseModel, *, limits: SlotLimits, dtype: torch.dtype
    ) -> HostAdapter:
        """Checks again and converts; called in loader threads. Raises as `check` does."""
        ...

    def bind(
        self,
        linears: Sequence[AdaptedLinears],
        *,
        limits: SlotLimits,
        dtype: torch.dtype,
        device: torch.device,
        backend: LowRankBackend,
    ) -> BoundMethod:
        """Allocates the slots and attaches to the base's modules. Weights are not touched."""
        ...
