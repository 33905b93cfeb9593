"""A Residency over adapters that are made up, and read when a test says so."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from adapters_store.content import AdapterContent, BaseModel, LinearShape
from adapters_store.errors import AdapterNotFound
from server.adapters.loading import LoaderThreads, LoadTarget
from server.adapters.residency import Residency
from server.adapters.slot_rows import SlotLimits

MODULE = "model.layers.0.self_attn.q_proj"
BASE = BaseModel("base", "0" * 64, "LlamaForCausalLM", {MODULE: LinearShape(8, 8)})
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
BYTES = 4 * (4 * 8 + 8 * 4)  # of one adapter: a and b, in float32


class HeldSource:
    """Has every adapter but "missing", and gives none out until `go` is set."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.go = threading.Event()

    def read(self, digest: str) -> AdapterContent:
        self.reads[digest] += 1
        assert self.go.wait(20)
        if digest == "missing":
            raise AdapterNotFound(f"No adapter has the digest {digest}.")
        stem = f"base_model.model.{MODULE}"
        tensors = {
            f"{stem}.lora_A.weight": torch.ones(4, 8),
            f"{stem}.lora_B.weight": torch.ones(8, 4),
        }
        return AdapterContent(digest, CONFIG, tensors)


Make = Callable[..., Residency]


@pytest.fixture
def source() -> HeldSource:
    return HeldSource()


@pytest.fixture
def make(source: HeldSource) -> Iterator[Make]:
    """Residencies that are closed in the end, their loaders with them."""
    made: list[Residency] = []

    def residency(slots: int = 2, host_cache_bytes: int = 1 << 20, **rest: Any) -> Residency:
        limits = SlotLimits(slots, rows=rest.pop("rows", 8 * slots), row_bytes=1)
        one = Residency(
            LoaderThreads(rest.pop("source", source), LoadTarget(BASE, limits, torch.float32)),
            {},
            limits=limits,
            host_cache_bytes=host_cache_bytes,
            **rest,
        )
        made.append(one)
        return one

    yield residency
    source.go.set()
    for one in made:
        one.close()


def finish(residency: Residency, awaited: str = "") -> dict[str, Any]:
    """Waits until nothing is being read; the failed ones."""
    failed: dict[str, Any] = {}
    while residency._reading:
        residency.wait(20)
        failed |= residency.collect(lambda: frozenset(awaited))
    residency.check()
    return failed
