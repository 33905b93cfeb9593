"""Many adapters through few slots, with random aborts: nothing wrong, nothing left, no growth."""

import gc
from pathlib import Path

import psutil
import pytest

from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig
from server.engine.sequence import Sequence
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import LLAMA, VOCAB, make_base
from tests.support.reference import Reference
from tests.support.traffic import Key, Mix, Outcome, play, random_calls, random_prompts

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ADAPTERS = 16
REQUESTS = 2_000
ROUNDS = 5  # the first warms up
GROWTH_BYTES = 8 << 20  # over 1,600 requests; measured: a quarter of one MiB


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The base's folder under "base", and sixteen adapters, two of each recipe."""
    base = make_base(LLAMA, tmp_path / "base")
    recipes = [RECIPES[number % len(RECIPES)] for number in range(ADAPTERS)]
    names = [f"{recipe.name}-{number}" for number, recipe in enumerate(recipes)]
    made = {
        name: make_adapter(base, LLAMA, recipe, tmp_path / name, seed=100 + number)
        for number, (name, recipe) in enumerate(zip(names, recipes, strict=True))
    }
    return {"base": base} | made


def churn_config(base: Path) -> EngineConfig:
    """Two slots, a host cache that holds a few adapters only, and KV blocks for a few requests."""
    return EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cpu",
        threads=1,
        max_resident_adapters=2,
        max_rank=32,
        kv_cache_bytes=kv_bytes(base, blocks=32, block_size=8),
        max_batch_tokens=64,
        max_sequences=32,
        block_size=8,
        host_cache_bytes=1 << 20,
    )


def test_two_slots_sixteen_adapters_two_thousand_requests(folders: dict[str, Path]):
    base = folders.pop("base")
    source = FolderSource(folders)
    engine = Engine(churn_config(base), source)
    mix = Mix(
        requests=REQUESTS // ROUNDS,
        adapters=list(folders),
        prompts=random_prompts(6, VOCAB, (2, 40), seed=11),
        max_tokens=(12, 12),
        per_step=0.6,
        aborted=0.25,
    )
    rounds = [random_calls(mix, seed=round_) for round_ in range(ROUNDS)]
    outcomes: list[dict[Key, Outcome]] = []
    resident_bytes = []
    try:
        for calls in rounds:
            outcomes.append(play(engine, calls, source.digests))
            assert_nothing_held(engine)
            gc.collect()
            assert not any(type(thing) is Sequence for thing in gc.get_objects())
            resident_bytes.append(psutil.Process().memory_info().rss)
        stats = engine.stats()
    finally:
        engine.close()
    assert stats.preemptions > 0
    assert stats.slot_evictions > ADAPTERS
    assert stats.host_evictions > 0
    assert resident_bytes[-1] - resident_bytes[0] < GROWTH_BYTES, resident_bytes
    aborted = [o for played in outcomes for o in played.values() if o.reason == "abort"]
    assert len(aborted) > REQUESTS / 10
    reference = Reference(base, folders)
    for calls, played in zip(rounds, outcomes, strict=True):
        assert wrong_answers(calls, played, reference) == []
