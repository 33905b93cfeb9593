"""Invariant 1: each request's tokens are transformers + peft's, whatever shares its batch."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import demo
from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import FAMILIES, LLAMA, VOCAB, Family, make_base
from tests.support.reference import Reference
from tests.support.traffic import Mix, alike_prompts, play, random_calls, random_prompts

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


def assert_exact(
    base: Path,
    folders: dict[str, Path],
    config: EngineConfig,
    mix: Mix,
    *,
    reference: Reference | None = None,
    found: float = 0.0,
) -> None:
    """Plays the mix, recounting after every step, and compares every token.

    At least the share `found` of the prompts' tokens must have come from the prefix cache.
    """
    source = FolderSource(folders)
    engine = Engine(config, source)
    try:
        calls = random_calls(mix, seed=3)
        outcomes = play(engine, calls, source.digests)
        assert engine.stats().preemptions > 0, "the cache was too large for this test's purpose"
        assert engine.stats().slot_evictions > 0
        assert engine.stats().prefix_hits >= found * engine.stats().prefix_queries
        assert_nothing_held(engine)
    finally:
        engine.close()
    wrong = wrong_answers(calls, outcomes, reference or Reference(base, folders))
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


@pytest.mark.parametrize(
    ("kernels", "prefix_cache"), [*((kind, True) for kind in KERNELS), ("auto", False)]
)
def test_two_hundred_requests_that_begin_alike(kernels: str, prefix_cache: bool, tmp_path: Path):
    """Few beginnings, second turns of earlier answers, two salts, and clients that leave, over
    fewer blocks than they could share."""
    base = make_base(LLAMA, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(RECIPES[:3])
    }
    reference = Reference(base, folders)
    first_turns = alike_prompts(30, VOCAB, beginnings=2, lengths=(1, 40), seed=4)
    second_turns = [
        (*prompt, *reference.answer(adapter, prompt, 16, ignore_eos=True).tokens, *tail)
        for adapter in (None, *folders)
        for prompt, tail in zip(
            first_turns[:4], random_prompts(4, VOCAB, (1, 9), seed=5), strict=True
        )
    ]
    mix = Mix(
        requests=200,
        adapters=[None, *folders],
        prompts=first_turns + second_turns,
        max_tokens=(8, 24),
        per_step=0.9,
        aborted=0.15,
        salts=("", "", "tenant"),
    )
    config = replace(hard_config(base, kernels, slots=2, blocks=20), prefix_cache=prefix_cache)
    found = 0.15 if prefix_cache else 0.0
    assert_exact(base, folders, config, mix, reference=reference, found=found)


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_prompt_is_never_shared_across_adapters_or_salts(kernels: str, tmp_path: Path):
    """Whoever asks first finds nothing, though all others have asked the same; the second finds
    all but the last block. Every answer is its own version's."""
    base = make_base(LLAMA, tmp_path / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, tmp_path / recipe.name, seed=seed)
        for seed, recipe in enumerate(RECIPES[:2])
    }
    source, reference = FolderSource(folders), Reference(base, folders)
    engine = Engine(hard_config(base, kernels, slots=2, blocks=120), source)
    (prompt,) = random_prompts(1, VOCAB, (50, 50), seed=6)
    askers = list(itertools.product([None, *folders], ["", "tenant", "other"]))
    try:
        for number, (name, salt) in enumerate(askers + askers):
            digest = None if name is None else source.digests[name]
            sampling = SamplingParams(12, temperature=0.0, ignore_eos=True)
            engine.submit(GenerationRequest(str(number), prompt, sampling, digest, 1, salt))
            events = []
            while engine.has_work():
                events += engine.step()
                engine.check()
            assert all(isinstance(event, TokenEvent) for event in events)
            assert events[0].cached_tokens == (0 if number < len(askers) else 48)
            answer = reference.answer(name, prompt, 12, ignore_eos=True)
            assert tuple(event.token_id for event in events) == answer.tokens
        assert engine.stats().prefix_hits == 48 * len(askers)
        assert engine.stats().prefix_queries == 2 * 50 * len(askers)
        assert_nothing_held(engine)
    finally:
        engine.close()


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
        prompts=random_prompts(12, VOCAB, (4, 66), seed=2)
        + alike_prompts(12, VOCAB, beginnings=1, lengths=(30, 66), seed=2),
        max_tokens=(4, 20),
        per_step=0.7,
    )
    assert_exact(base, folders, hard_config(base, kernels, slots=2, blocks=16), mix)
