"""Drafts change how many steps an answer takes, and nothing else about it.

Beside an engine without drafts, whatever the sampling; and beside transformers + peft. Tiny random
models repeat little, so most tests draft from the answer itself, and spoil some of it.
"""

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.folder_source import FolderSource
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent
from server.engine.plan import Chunk
from server.engine.scheduler import Scheduler
from server.engine.sequence import Phase, Sequence
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held, kv_bytes, wrong_answers
from tests.support.families import LLAMA, VOCAB, make_base
from tests.support.reference import Reference
from tests.support.traffic import Key, Mix, play, random_calls

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BLOCK_SIZE = 8
DRAFTS = 5
REQUESTS = 60
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "ignore_eos": True, "logprobs": 3},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "seed": 2, "logprobs": 0},
    {"temperature": 0.9, "min_p": 0.05, "seed": 3, "repetition_penalty": 1.4},
    {"temperature": 0.0, "repetition_penalty": 1.3, "ignore_eos": True},
    {"temperature": 0.0, "presence_penalty": 0.8, "frequency_penalty": 0.6, "ignore_eos": True},
    {"temperature": 0.7, "frequency_penalty": 0.9, "seed": 4, "logprobs": 2},
    {"temperature": 1.0, "seed": 5, "stop_token_ids": tuple(range(20, 60)), "min_tokens": 7},
    {"temperature": 0.0, "stop_token_ids": tuple(range(60, 90)), "min_tokens": 3},
)
Told = list[tuple[int | None, str | None, float | None, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Tiny:
    """A base, its adapters, and what an engine without drafts says."""

    base: Path
    folders: dict[str, Path]
    plain: dict[Key, Told]
    plain_steps: int


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    base = make_base(LLAMA, root / "base")
    folders = {
        recipe.name: make_adapter(base, LLAMA, recipe, root / recipe.name, seed=seed)
        for seed, recipe in enumerate(RECIPES[:4])
    }
    source = FolderSource(folders)
    engine = Engine(config(base, drafts=0), source)
    plain = told(engine, requests(source))
    steps = engine.stats().steps
    engine.close()
    return Tiny(base, folders, plain, steps)


def config(base: Path, drafts: int = DRAFTS, *, kernels: str = "auto") -> EngineConfig:
    """Few slots, tokens a step and blocks: loading, chunking and pre-emption happen."""
    return EngineConfig(
        model=str(base),
        blobs="",
        dtype="float32",
        device="cpu",
        threads=1,
        max_resident_adapters=2,
        max_rank=32,
        kv_cache_bytes=kv_bytes(base, 24, BLOCK_SIZE),
        max_batch_tokens=40,
        max_sequences=10,
        block_size=BLOCK_SIZE,
        speculative_tokens=drafts,
        kernels=kernels,  # type: ignore[arg-type]
    )


def requests(source: FolderSource) -> list[GenerationRequest]:
    """Each way of sampling under the base and every adapter, some with n = 3."""
    rng = random.Random(8)
    versions = [None, *source.digests.values()]
    made = []
    for number in range(REQUESTS):
        sampling = SamplingParams(
            **({"max_tokens": rng.randint(8, 24)} | SAMPLINGS[number % len(SAMPLINGS)])
        )
        adapter = versions[number // len(SAMPLINGS) % len(versions)]
        n = 3 if number % 7 == 0 else 1
        made.append(GenerationRequest(str(number), phrases(rng), sampling, adapter, n))
    return made


def phrases(rng: random.Random) -> tuple[int, ...]:
    """A prompt that says one thing several times, cut anywhere."""
    phrase = [rng.randrange(VOCAB) for _ in range(rng.randint(2, 9))]
    return tuple((phrase * 12)[: rng.randint(2, 60)])


def told(engine: Engine, asked: list[GenerationRequest]) -> dict[Key, Told]:
    """What each sequence is told, in order; one more request arrives with each step."""
    out: dict[Key, Told] = {}
    left = list(reversed(asked))
    while left or engine.has_work():
        if left:
            engine.submit(left.pop())
        for event in engine.step():
            assert isinstance(event, TokenEvent), event
            top = tuple(token for token, _ in event.top_logprobs)
            entry = (event.token_id, event.finish_reason, event.logprob, top)
            out.setdefault((event.request_id, event.index), []).append(entry)
        engine.check()
    assert_nothing_held(engine)
    return out


class Oracle:
    """Drafts what a sequence is going to say, now more and now less of it, and errs on purpose."""

    def __init__(self, prompt_length: int, answer: list[int], rng: random.Random) -> None:
        self._prompt_length = prompt_length
        self._answer = answer
        self._rng = rng

    def propose(self, tokens: list[int], room: int) -> tuple[int, ...]:
        said = len(tokens) - self._prompt_length
        count = max(0, min(room, self._rng.randint(0, DRAFTS)))
        right = self._answer[said : said + count]
        return tuple((token + (self._rng.random() < 0.15)) % VOCAB for token in right)

    def learn(self, drafted: int, accepted: int) -> None:
        assert 0 <= accepted <= drafted


def ask_oracles(engine: Engine, answer_of: Callable[[Sequence], list[int]]) -> None:
    """From now on the engine's sequences draft from their own answers."""
    rng, submit = random.Random(9), engine.submit

    def submit_and_ask(request: GenerationRequest) -> None:
        submit(request)
        for one in engine._requests[request.id]:
            one.lookup = Oracle(one.prompt_length, answer_of(one), rng)  # type: ignore[assignment]

    engine.submit = submit_and_ask


@contextmanager
def speculating(tiny: Tiny, **options: Any) -> Iterator[tuple[Engine, FolderSource]]:
    source = FolderSource(tiny.folders)
    engine = Engine(config(tiny.base, **options), source)
    try:
        yield engine, source
    finally:
        engine.close()


def assert_told_alike(found: dict[Key, Told], wanted: dict[Key, Told]) -> None:
    assert found.keys() == wanted.keys()
    for key, events in wanted.items():
        assert [e[:2] for e in found[key]] == [e[:2] for e in events], key
        assert [e[3] for e in found[key]] == [e[3] for e in events], key
        for (_, _, ours, _), (_, _, theirs, _) in zip(found[key], events, strict=True):
            assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-3)), key


def own_answers(tiny: Tiny) -> Callable[[Sequence], list[int]]:
    return lambda one: [token for token, *_ in tiny.plain[one.key] if token is not None]


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_whatever_the_sampling_the_answers_are_those_of_plain_decoding(kernels: str, tiny: Tiny):
    with speculating(tiny, kernels=kernels) as (engine, source):
        ask_oracles(engine, own_answers(tiny))
        assert_told_alike(told(engine, requests(source)), tiny.plain)
        stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.slot_evictions > 0
    assert stats.steps < 0.8 * tiny.plain_steps
    assert 100 < stats.accepted_tokens < stats.drafted_tokens - 100
    assert stats.drafts < stats.drafted_tokens


def test_so_they_are_with_drafts_from_the_text_itself(tiny: Tiny):
    with speculating(tiny) as (engine, source):
        assert_told_alike(told(engine, requests(source)), tiny.plain)
        stats = engine.stats()
    assert stats.preemptions > 0
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.drafted_tokens < 0.1 * stats.step_tokens, "guesses that fail are given up"


def test_a_loop_takes_a_fraction_of_the_steps(tiny: Tiny):
    """A sequence that is held to one token by its penalty says it again and again."""
    sampling = SamplingParams(
        60, temperature=0.0, ignore_eos=True, presence_penalty=-50.0, logprobs=0
    )
    request = GenerationRequest("a", (3, 1, 4), sampling)
    found = []
    for drafts in (0, DRAFTS):
        with speculating(tiny, drafts=drafts) as (engine, _):
            found.append((told(engine, [request]), engine.stats()))
    (plain, slow), (fast_told, fast) = found
    assert_told_alike(fast_told, plain)
    assert slow.steps == 60
    assert fast.steps < 25
    assert fast.steps + fast.accepted_tokens == 60


def count_rejected(scheduler: Scheduler, plan: Any, rejected: list[tuple[Chunk, Any]]) -> None:
    for chunk, _ in rejected:
        if chunk.sequence.phase is Phase.RUNNING:
            chunk.sequence.computed += 1


FAULTS: dict[str, tuple[type, str, Any]] = {
    "every draft counts": (
        Chunk,
        "came_true",
        property(lambda c: c.start + 1 == len(c.sequence.tokens)),
    ),
    "draws forget the drafts": (
        Chunk,
        "output_length",
        property(lambda c: c.sequence.output_length),
    ),
    "penalties forget the drafts": (Chunk, "text", property(lambda c: c.sequence.tokens)),
    "what was rejected counts as computed": (Scheduler, "_learn", count_rejected),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    with speculating(tiny) as (engine, source):
        ask_oracles(engine, own_answers(tiny))
        monkeypatch.setattr(*FAULTS[fault])
        with pytest.raises((AssertionError, IndexError)):  # the answers', or an impossible plan's
            assert_told_alike(told(engine, requests(source)), tiny.plain)


def test_under_churn_they_are_those_of_transformers_and_peft(tiny: Tiny):
    rng = random.Random(10)
    mix = Mix(
        requests=300,
        adapters=[None, *tiny.folders],
        prompts=[phrases(rng) for _ in range(6)],
        max_tokens=(20, 20),
        per_step=0.9,
        aborted=0.25,
        salts=("", "tenant"),
    )
    calls, reference = random_calls(mix, seed=12), Reference(tiny.base, tiny.folders)
    with speculating(tiny) as (engine, source):
        names = {digest: name for name, digest in source.digests.items()}

        def answer(one: Sequence) -> list[int]:
            prompt, sampling = tuple(one.tokens[: one.prompt_length]), one.sampling
            adapter = None if one.adapter is None else names[one.adapter]
            tokens = reference.answer(adapter, prompt, 20, sampling.ignore_eos).tokens
            return list(tokens)

        ask_oracles(engine, answer)
        outcomes = play(engine, calls, source.digests)
        assert_nothing_held(engine)
        stats = engine.stats()
        gc.collect()
        assert not any(type(thing) is Sequence for thing in gc.get_objects())
    assert stats.preemptions > 0
    assert stats.slot_evictions > 0
    assert stats.prefix_hits > 0
    assert stats.accepted_tokens > 500
    assert sum(outcome.reason == "abort" for outcome in outcomes.values()) > 30
    assert wrong_answers(calls, outcomes, reference) == []


def test_the_longest_context_is_filled_and_not_exceeded(tiny: Tiny):
    with speculating(tiny) as (engine, _):
        room = engine.info.max_model_len
        sampling = SamplingParams(room - 50, temperature=0.0, ignore_eos=True)
        request = GenerationRequest("a", tuple(range(50)), sampling)
        plain = told(engine, [request])["a", 0]
        answer = [token for token, *_ in plain if token is not None]
        ask_oracles(engine, lambda _: [*answer, *range(DRAFTS)])
        assert [e[:2] for e in told(engine, [request])["a", 0]] == [e[:2] for e in plain]
        assert len(answer) == room - 50
