"""Adapters of ranks far apart share the slots' memory: each takes its own, and answers as alone."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, Failed, GenerationRequest, SamplingParams
from tests.support.adapters import Recipe, lora_config, make_adapter, save_random_lora
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import COMMON, LLAMA, VOCAB, make_base
from tests.support.reference import Reference
from tests.support.traffic import Call, Mix, play, random_calls, random_prompts

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KERNELS = ["auto", "torch"]
HIDDEN, INNER, KV = 64, 112, 32  # of LLAMA's linears
IN_AND_OUT = 2 * (2 * HIDDEN) + 2 * (HIDDEN + KV) + 3 * (HIDDEN + INNER)
ROW_BYTES = IN_AND_OUT * COMMON["num_hidden_layers"] * 4

UNEQUAL = (
    Recipe("four", rank=4, alpha=8),
    Recipe("eight", rank=8, alpha=16),
    Recipe("eight-attention", rank=8, alpha=6, part="attention"),
    Recipe("patterned", rank=8, alpha=16, patterns={0: (40, 60), 1: (1, 2)}),
    Recipe("high", rank=128, alpha=128),
    Recipe("high-mlp-rs", rank=128, alpha=30, part="mlp", rslora=True),
    Recipe("high-one-layer", rank=100, alpha=200, layers=(1,)),
)


def config(base: Path, kernels: str, *, slots: int, rows: int, sequences: int) -> EngineConfig:
    return EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cpu",
        threads=1,
        max_resident_adapters=slots,
        slot_bytes=rows * ROW_BYTES,
        kv_cache_bytes=kv_bytes(base, blocks=200, block_size=8),
        max_batch_tokens=64,
        max_sequences=sequences,
        block_size=8,
        kernels=kernels,
    )


@pytest.mark.parametrize("kernels", KERNELS)
def test_they_churn_through_memory_for_one_high_rank_and_two_low_ones(
    kernels: str, tmp_path: Path
) -> None:
    base = make_base(LLAMA, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(UNEQUAL)
    }
    mix = Mix(
        requests=150,
        adapters=[None, *folders],
        prompts=random_prompts(60, VOCAB, (1, 40), seed=1),
        max_tokens=(1, 20),
        per_step=0.7,
        aborted=0.1,
    )
    source, calls = FolderSource(folders), random_calls(mix, seed=3)
    engine = Engine(config(base, kernels, slots=6, rows=128 + 2 * 8, sequences=12), source)
    try:
        assert engine.info.slot_rows == 144
        outcomes = play(engine, calls, source.digests)
        assert engine.stats().slot_evictions > 10
        assert_nothing_held(engine)
    finally:
        engine.close()
    wrong = wrong_answers(calls, outcomes, Reference(base, folders))
    assert not wrong, f"{len(wrong)} of {len(calls)} differ:\n" + "\n".join(wrong[:20])


def test_one_of_rank_128_beside_63_of_rank_8_takes_no_more_than_the_sum(tmp_path: Path) -> None:
    base = make_base(LLAMA, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ranks = [128 if number == 20 else 8 for number in range(64)]
    folders = {
        f"a{number}": save_random_lora(
            model,
            lora_config(LLAMA, Recipe(f"a{number}", rank=rank, alpha=16)),
            tmp_path / f"a{number}",
            seed=number,
        )
        for number, rank in enumerate(ranks)
    }
    prompts = random_prompts(64, VOCAB, (2, 12), seed=2)
    calls = [
        Call(name, name, prompt, max_tokens=4, at_step=0)
        for name, prompt in zip(folders, prompts, strict=True)
    ]
    source = FolderSource(folders)
    engine = Engine(config(base, "auto", slots=64, rows=128 + 63 * 8, sequences=64), source)
    try:
        outcomes = play(engine, calls, source.digests)
        stats = engine.stats()
        assert set(stats.running_adapters) == set(source.digests.values())
        assert stats.slot_evictions == 0
        assert stats.slot_rows_used == stats.slot_rows_total == 128 + 63 * 8
        assert_nothing_held(engine)
    finally:
        engine.close()
    assert wrong_answers(calls[::4], outcomes, Reference(base, folders)) == []  # the high one too


def test_a_rank_that_slots_have_no_room_for_ends_its_own_request_with_the_remedy(
    tmp_path: Path,
) -> None:
    """As after a restart with less memory: when it was uploaded there was enough."""
    base = make_base(LLAMA, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(UNEQUAL[:5])
    }
    source = FolderSource(folders)
    engine = Engine(config(base, "auto", slots=6, rows=40, sequences=4), source)
    sampling = SamplingParams(4, temperature=0.0)
    failed: list[Failed] = []
    try:
        for name in ("high", "eight"):
            engine.submit(GenerationRequest(name, (3, 5), sampling, source.digests[name]))
        while engine.has_work():
            failed += [event for event in engine.step() if isinstance(event, Failed)]
            engine.check()
    finally:
        engine.close()
    (only,) = failed
    assert (only.request_id, only.code) == ("high", "invalid_adapter")
    assert f"--slot-bytes {128 * ROW_BYTES} or more" in only.message
