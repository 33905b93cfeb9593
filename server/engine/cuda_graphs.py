"""Decode steps as CUDA graphs: one for each shape of step, captured when it first comes up.

Launching some hundred kernels from Python takes longer than a GPU takes to run them on a few rows.
Here: which steps can be replayed, the buffers that a graph reads, and the capture. Not here: what
a step does. Prompts, and whatever else is no plain decode, run as they come. Never run on a GPU
yet; all but the capture is tested on CPUs.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from server.engine.plan import StepPlan
from server.kernels.segments import NO_ADAPTER, SegmentPlan

logger = logging.getLogger(__name__)

LEAST_BLOCKS = 16  # of a graph's block tables; the next widths are 4, 16, 64 … times as many
NOT_WRITTEN = -1  # the write place of rows of padding

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Records what a function does, and gives a function that does it again with the same tensors.
Raises RuntimeError if it cannot be recorded."""


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What the shapes of a decode step depend on."""

    rows: int  # with padding
    blocks: int  # of a block table
    rank_room: int  # for its adapters (SegmentPlan.rank_room); 0: there are none

    @classmethod
    def of(cls, plan: StepPlan) -> "GraphKey | None":
        """None if the step is anything but one token of each sequence, all of them sampled."""
        chunks = len(plan.chunks)
        if plan.decodes != chunks or plan.sample_rows.shape[0] != chunks:
            return None
        blocks = LEAST_BLOCKS
        while blocks < plan.block_tables.shape[1]:
            blocks *= 4
        return cls(plan.token_ids.shape[0], blocks, plan.segments.rank_room)


class StepGraphs:
    """Graphs by key.

    Must stay true: a graph reads only tensors of its own plan, which a step is copied into. If one
    cannot be captured (an architecture that reads the device in its forward), none is tried again.
    """

    def __init__(self, forward: Callable[[StepPlan], Tensor], capture: Capture) -> None:
        self._forward = forward
        self._capture = capture
        self._steps: dict[GraphKey, tuple[StepPlan, Callable[[], Tensor]]] = {}
        self._off = False

    def __len__(self) -> int:
        return len(self._steps)

    def run(self, plan: StepPlan) -> Tensor | None:
        """Logits [samples, vocab], valid until the next step; None if it has to run as it is."""
        key = None if self._off else GraphKey.of(plan)
        if key is None:
            return None
        if key not in self._steps and not self._add(key, plan):
            return None
        static, replay = self._steps[key]
        load(static, plan)
        return replay()[: plan.decodes]

    def _add(self, key: GraphKey, plan: StepPlan) -> bool:
        static = static_plan(key, plan)
        load(static, plan)
        try:
            replay = self._capture(lambda: self._forward(static))
        except RuntimeError as error:
            self._off = True
            logger.warning("decode steps run without CUDA graphs: %s", error)
            return False
        self._steps[key] = static, replay
        return True


def static_plan(key: GraphKey, plan: StepPlan) -> StepPlan:
    """A plan with tensors of its own for every step of this key; `plan` is the first of them.

    Each row is a chunk and a segment of its own, as far as shapes go. What the plan says on the
    host (chunks, segments' items) is the first step's, and holds for others only in total: rows,
    and the room for their ranks.
    """
    rows, device = key.rows, plan.token_ids.device
    every_row = torch.arange(rows + 1, device=device)
    return replace(
        plan,
        token_ids=torch.zeros_like(plan.token_ids),
        positions=torch.zeros_like(plan.positions),
        query_starts=every_row.to(torch.int32),
        block_tables=plan.block_tables.new_zeros(rows, key.blocks),
        write_places=plan.write_places.new_full((rows,), NOT_WRITTEN),
        sample_rows=every_row[:rows],
        decodes=rows,
        segments=SegmentPlan(
            starts=plan.segments.starts.new_full((rows + 1,), rows),
            slots=plan.segments.slots.new_full((rows,), NO_ADAPTER),
            items=plan.segments.items,
        ),
    )


def load(static: StepPlan, plan: StepPlan) -> None:
    """Copies a step into the plan of its graph.

    A row of padding is the first token of a sequence whose one block is the null block: it reads
    zeros and writes nothing.
    """
    static.token_ids.copy_(plan.token_ids)
    static.positions.copy_(plan.positions)
    count, width = plan.block_tables.shape
    static.block_tables[:count, :width].copy_(plan.block_tables)
    static.block_tables[count:].zero_()
    static.write_places[:count].copy_(plan.write_places)
    static.write_places[count:].fill_(NOT_WRITTEN)
    starts, slots = static.segments.starts, static.segments.slots
    segments = plan.segments.slots.shape[0]
    starts[: segments + 1].copy_(plan.segments.starts)
    starts[segments + 1 :].fill_(static.decodes)
    slots[:segments].copy_(plan.segments.slots)
    slots[segments:].fill_(NO_ADAPTER)


class CudaCapture:
    """Captures on CUDA; all graphs of a runner share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Runs `forward` twice, and then captures it.

        The second run refuses whatever waits for the device: such a forward cannot be captured,
        and a capture that fails half-way is best not begun.
        """
        before = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(before)
            forward()  # compiles kernels and makes libraries' workspaces
            _without_waiting(forward)
        before.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Loader threads pin memory meanwhile, which must not spoil the capture.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            logits = forward()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def _without_waiting(forward: Callable[[], Tensor]) -> None:
    """Raises RuntimeError if `forward` makes the host wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
