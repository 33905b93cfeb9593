"""Invariant 1: each request's tokens are transformers + peft's, whatever shares its batch."""

import itertools
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import demo
from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import FAMILIES, LLAMA, VOCAB, Family, make_base
from tests.support.reference import Reference
from tests.support.traffic import Mix, play, random_calls, random_prompts

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BLOCK_SIZE = 8  # tokens; smaller than the default, so that sequences cross many blocks
LONGEST = 90  # tokens of prompt and answer
KERNELS = ["auto", "torch"]  # auto is the native ones, wherever they are built


def hard_config(base: Path, kernels: str, *, slots: int, blocks: int) -> EngineConfig:
    """Few slots, few tokens a step and few KV blocks: loading, chunking and pre-emption happen."""
    assert blocks * BLOCK_SIZE >= LONGEST
    return EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cpu",
        threads=1,
        max_resident_adapters=slots,
        max_rank=32,
        kv_cache_bytes=kv_bytes(base, blocks, BLOCK_SIZE),
        max_batch_tokens=40,
        max_sequences=16,
        block_size=BLOCK_SIZE,
        kernels=kernels,
    )


def assert_exact(base: Path, folders: dict[str, Path], config: EngineConfig, mix: Mix) -> None:
    """Plays the mix, recounting after every step, and compares every token."""
    source = FolderSource(folders)
    engine = Engine(config, source)
    try:
        calls = random_calls(mix, seed=3)
        outcomes = play(engine, calls, source.digests)
        assert engine.stats().preemptions > 0, "the cache was too large for this test's purpose"
        assert engine.stats().slot_evictions > 0
        assert_nothing_held(engine)
    finally:
        engine.close()
    wrong = wrong_answers(calls, outcomes, Reference(base, folders))
    assert not wrong, f"{len(wrong)} of {len(calls)} differ:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("kernels", KERNELS)
def test_two_hundred_requests_over_unequal_adapters(kernels: str, tmp_path: Path):
    base = make_base(LLAMA, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(RECIPES)
    }
    mix = Mix(
        requests=200,
        adapters=[None, *folders],
        prompts=random_prompts(120, VOCAB, (1, 66), seed=1),
        max_tokens=(1, 24),
        per_step=0.9,
    )
    assert_exact(base, folders, hard_config(base, kernels, slots=3, blocks=24), mix)


@pytest.mark.parametrize("kernels", KERNELS)
def test_two_hundred_requests_on_the_demo(kernels: str, tmp_path: Path):
    """The embedded base with its trained adapters, asked what they were made for, and two random
    ones of other shapes."""
    if not demo.base_path().is_dir():
        pytest.skip("the demo is not made yet: python -m demo.make")
    base = demo.base_path()
    folders = {name: path for name, path in demo.adapter_paths().items() if path.is_dir()}
    for seed, recipe in enumerate(RECIPES[2:4]):
        folders[recipe.name] = make_adapter(
            base, LLAMA, recipe, tmp_path / recipe.name, seed=seed, gain=0.3
        )
    assert len(folders) >= 6
    mix = Mix(
        requests=200,
        adapters=[None, *folders],
        prompts=demo_prompts(60),
        max_tokens=(1, 24),
        per_step=0.9,
    )
    assert_exact(base, folders, hard_config(base, kernels, slots=3, blocks=24), mix)


def demo_prompts(count: int) -> list[tuple[int, ...]]:
    """Chats of the demo's own examples, each also cut somewhere within its first 66 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base_path())
    rng = random.Random(7)
    prompts = []
    for text in itertools.islice(itertools.cycle(demo.EXAMPLES.values()), count):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.encode(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        )
        prompts.append(tuple(ids[: rng.randint(4, 66)]))
    return prompts


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family(family: Family, kernels: str, tmp_path: Path):
    base = make_base(family, tmp_path / "base")
    recipes = [recipe for recipe in RECIPES if recipe.name in ("all", "patterned", "two-layers-rs")]
    folders = {
        recipe.name: make_adapter(base, family, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(recipes)
    }
    mix = Mix(
        requests=24,
        adapters=[None, *folders],
        prompts=random_prompts(24, VOCAB, (4, 66), seed=2),
        max_tokens=(4, 20),
        per_step=0.7,
    )
    assert_exact(base, folders, hard_config(base, kernels, slots=2, blocks=16), mix)
