"""Runs one step: plan → logits. The only place that calls the model."""

import torch
from torch import Tensor

from server.adapters.methods.base import BoundMethod
from server.engine.attention import PagedStep
from server.engine.base import LoadedBase
from server.engine.cuda_graphs import Capture, StepGraphs
from server.engine.kv_cache import KVCache
from server.engine.plan import StepPlan


class Runner:
    """The base, its KV cache and the bound adapter kinds, put to one plan at a time.

    `triton`: attention runs on the Triton kernels. `capture`: how decode steps become graphs;
    only with them, since the other forms of attention ask the host.
    """

    def __init__(
        self,
        base: LoadedBase,
        cache: KVCache,
        bound: tuple[BoundMethod, ...],
        *,
        triton: bool = False,
        capture: Capture | None = None,
    ) -> None:
        assert triton or capture is None
        self._model = base.model
        self._kernels = base.kernels
        self._cache = cache
        self._bound = bound
        self._triton = triton
        self.graphs = None if capture is None else StepGraphs(self._forward, capture)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits [samples, vocab] of the plan's sample rows; the KV cache holds its tokens."""
        for bound in self._bound:
            bound.await_copies(plan.segments)
        logits = None if self.graphs is None else self.graphs.run(plan)
        return self._forward(plan) if logits is None else logits

    def _forward(self, plan: StepPlan) -> Tensor:
        for bound in self._bound:
            bound.begin_step(plan.segments)
        try:
            return self._model(
                input_ids=plan.token_ids.unsqueeze(0),
                position_ids=plan.positions.unsqueeze(0),
                use_cache=False,
                logits_to_keep=plan.sample_rows,
                paged=self._paged_step(plan),
            ).logits[0]
        finally:
            for bound in self._bound:
                bound.end_step()

    def _paged_step(self, plan: StepPlan) -> PagedStep:
        if not self._triton:
            return PagedStep(plan, self._cache, self._kernels)
        from server.kernels.triton.attention import AttentionStep  # triton need not be installed

        step = AttentionStep(
            plan.query_starts, plan.positions, plan.block_tables, plan.write_places
        )
        return PagedStep(plan, self._cache, triton=step)
