"""Runs one step: plan → logits. The only place that calls the model."""

import torch
from torch import Tensor

from server.adapters.methods.base import BoundMethod
from server.engine.attention import PagedStep
from server.engine.base import LoadedBase
from server.engine.kv_cache import KVCache
from server.engine.plan import StepPlan


class Runner:
    """The base, its KV cache and the bound adapter kinds, put to one plan at a time."""

    def __init__(self, base: LoadedBase, cache: KVCache, bound: tuple[BoundMethod, ...]) -> None:
        self._model = base.model
        self._kernels = base.kernels
        self._cache = cache
        self._bound = bound

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits [samples, vocab] of the plan's sample rows; the KV cache holds its tokens."""
        for bound in self._bound:
            bound.begin_step(plan.segments)
        try:
            return self._model(
                input_ids=plan.token_ids.unsqueeze(0),
                position_ids=plan.positions.unsqueeze(0),
                use_cache=False,
                logits_to_keep=plan.sample_rows,
                paged=PagedStep(plan, self._cache, self._kernels),
            ).logits[0]
        finally:
            for bound in self._bound:
                bound.end_step()
