"""A bad adapter, a failing load or a failing step ends only the requests that it concerns."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters_store.content import AdapterContent
from adapters_store.errors import (
    Conflict,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    StoreCorrupt,
    Unavailable,
)
from benchmarks.folder_source import FolderSource
from server.engine.engine import MAX_FAILED_STEPS, Engine
from server.engine.messages import (
    Done,
    EngineConfig,
    Failed,
    GenerationRequest,
    Pin,
    Prefetch,
    SamplingParams,
    TokenEvent,
    Unpin,
)
from server.engine.scheduler import MAX_FILLS
from tests.support.adapters import RECIPES, make_adapter
from tests.support.exactness import assert_nothing_held
from tests.support.families import LLAMA, make_base

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPT = (5, 9, 2, 7)


class FaultySource(FolderSource):
    """Digests "corrupt", "away", "crash" fail to be read, each in its way; "nan" is poisoned."""

    def read(self, digest: str) -> AdapterContent:
        if digest == "corrupt":
            raise StoreCorrupt("the blob's bytes changed")
        if digest == "away":
            raise Unavailable("the store at s3://bucket cannot answer now: no route to it")
        if digest == "crash":
            raise ZeroDivisionError("a bug in the loader")
        if digest == "nan":
            content = super().read(next(iter(self.digests.values())))
            poisoned = {name: tensor * float("nan") for name, tensor in content.tensors.items()}
            return replace(content, digest="nan", tensors=poisoned)
        return super().read(digest)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("tiny")
    base = make_base(LLAMA, root / "base")
    return base, {"all": make_adapter(base, LLAMA, RECIPES[0], root / "all", seed=0)}


@pytest.fixture
def engine(folders: tuple[Path, dict[str, Path]]) -> Iterator[Engine]:
    base, adapters = folders
    config = EngineConfig(model=str(base), blobs="", dtype="float32", max_resident_adapters=2)
    engine = Engine(config, FaultySource(adapters))
    yield engine
    assert_nothing_held(engine)
    engine.close()


def request(name: str, adapter: str | None = None, n: int = 1, **sampling: Any):
    return GenerationRequest(name, PROMPT, replace(GREEDY, **sampling), adapter, n)


def run(engine: Engine) -> tuple[dict[str, list[TokenEvent]], dict[str, Failed]]:
    tokens: dict[str, list[TokenEvent]] = {}
    failed: dict[str, Failed] = {}
    while engine.has_work():
        for event in engine.step():
            if isinstance(event, Failed):
                assert event.request_id is not None
                assert event.request_id not in failed, "a request was failed twice"
                failed[event.request_id] = event
            else:
                tokens.setdefault(event.request_id, []).append(event)
        engine.check()
    return tokens, failed


def ids(events: list[TokenEvent]) -> list[int | None]:
    return [event.token_id for event in events]


@pytest.mark.parametrize(
    ("adapter", "code", "says"),
    [
        ("missing", "adapter_not_found", "missing"),
        ("corrupt", "store_corrupt", "bytes changed"),
        ("away", "unavailable", "s3://bucket"),
        ("crash", "adapter_load_failed", "ZeroDivisionError"),
    ],
)
def test_a_failing_load_ends_only_those_who_asked_for_it(
    engine: Engine, adapter: str, code: str, says: str
) -> None:
    engine.submit(request("alone"))
    alone, _ = run(engine)
    for one in (request("a", adapter), request("b"), request("c", adapter, n=2)):
        engine.submit(one)
    tokens, failed = run(engine)
    assert set(failed) == {"a", "c"}
    assert failed["a"].code == code
    assert says in failed["a"].message
    assert ids(tokens["b"]) == ids(alone["alone"])


def test_a_load_that_failed_is_tried_afresh_for_the_next_request(engine: Engine) -> None:
    for _ in range(2):
        engine.submit(request("a", "corrupt"))
        assert set(run(engine)[1]) == {"a"}
    assert engine.stats().host_misses == 2


def test_a_poisoned_adapter_ends_its_own_requests_only(
    engine: Engine,
) -> None:
    good = engine._residency._loader._source.digests["all"]  # type: ignore[attr-defined]
    logprobs = {"logprobs": 0}

    def others() -> list[GenerationRequest]:
        return [request("base", **logprobs), request("good", good, **logprobs)]

    for one in (*others(), request("third", None)):
        engine.submit(one)
    clean, _ = run(engine)
    for one in (*others(), request("bad", "nan", n=2)):
        engine.submit(one)
    tokens, failed = run(engine)
    assert set(failed) == {"bad"}
    assert "not finite" in failed["bad"].message
    assert "bad" not in tokens
    for name in ("base", "good"):
        assert ids(tokens[name]) == ids(clean[name])
        # The batch was another size, so the last bits may differ; test_cpu.py has the bits.
        found = [event.logprob for event in tokens[name]]
        assert found == pytest.approx([event.logprob for event in clean[name]], abs=1e-4)
    # Its blocks and its slot are clean again for whoever comes next.
    for one in (*others(), request("third", None)):
        engine.submit(one)
    after, failed = run(engine)
    assert not failed
    assert ids(after["good"]) == ids(clean["good"])


@contextmanager
def failing_forward(engine: Engine, error: Exception) -> Iterator[None]:
    """Within it, every forward pass of the base raises `error`."""

    def fail(*_: Any) -> None:
        raise error

    handle = engine._base.model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def test_a_failing_step_ends_its_requests_and_the_next_one_runs(engine: Engine) -> None:
    engine.submit(request("a"))
    wanted = ids(run(engine)[0]["a"])

    with failing_forward(engine, torch.OutOfMemoryError("no more")):
        engine.submit(request("a", n=2))
        _, failed = run(engine)
    assert set(failed) == {"a"}
    assert failed["a"].code == "engine_failed"
    engine.submit(request("b"))
    assert ids(run(engine)[0]["b"]) == wanted


def test_what_failed_is_found_by_nobody(engine: Engine) -> None:
    prompt = tuple(range(1, 40))  # two full blocks, and a beginning

    def asked(name: str, adapter: str | None = None) -> GenerationRequest:
        return GenerationRequest(name, prompt, GREEDY, adapter, n=2)

    for _ in range(2):
        engine.submit(asked("bad", "nan"))
        assert set(run(engine)[1]) == {"bad"}
    with failing_forward(engine, RuntimeError("it broke")):
        engine.submit(asked("a"))
        assert set(run(engine)[1]) == {"a"}
    assert engine.stats().prefix_hits == 0
    engine.submit(asked("a"))
    first, _ = run(engine)
    assert engine.stats().prefix_hits == 0
    engine.submit(asked("a"))
    again, _ = run(engine)
    assert engine.stats().prefix_hits == 2 * 32
    assert ids(first["a"]) == ids(again["a"])
    assert [event.cached_tokens for event in again["a"]][:2] == [32, 32]
    assert {event.cached_tokens for event in again["a"][2:]} == {None}


def test_steps_that_keep_failing_end_the_engine(folders: tuple[Path, dict[str, Path]]) -> None:
    engine = Engine(EngineConfig(model=str(folders[0]), blobs=""), FaultySource({}))

    with failing_forward(engine, RuntimeError("the device is gone")):
        for _ in range(MAX_FAILED_STEPS - 1):
            engine.submit(request("a"))
            run(engine)
        engine.submit(request("a"))
        with pytest.raises(EngineFailed, match="the device is gone"):
            run(engine)
    engine.close()


def test_several_sequences_of_one_request(engine: Engine) -> None:
    engine.submit(request("a", n=3))
    tokens, _ = run(engine)
    by_index = {i: [e.token_id for e in tokens["a"] if e.index == i] for i in range(3)}
    assert len(by_index[0]) == GREEDY.max_tokens
    assert by_index[0] == by_index[1] == by_index[2]
    engine.submit(request("b", n=3, temperature=1.5, seed=4))
    first, _ = run(engine)
    engine.submit(request("b", n=3, temperature=1.5, seed=4))
    again, _ = run(engine)
    drawn = [[e.token_id for e in first["b"] if e.index == i] for i in range(3)]
    assert len({tuple(one) for one in drawn}) == 3, "the sequences of one request are one and same"
    assert [(e.index, e.token_id) for e in first["b"]] == [
        (e.index, e.token_id) for e in again["b"]
    ]


def test_abort_frees_everything_at_once(engine: Engine) -> None:
    good = engine._residency._loader._source.digests["all"]  # type: ignore[attr-defined]
    engine.submit(request("a", good, n=2))
    engine.submit(request("b", max_tokens=240))  # still running when the adapter has been read
    while not engine.stats().slot_leases:
        engine.step()
    engine.abort("a")
    engine.abort("a")  # over already: no error
    engine.check()
    assert engine.stats().slot_leases == 0
    tokens, _ = run(engine)
    assert "a" not in tokens
    assert tokens["b"][-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error", "says"),
    [
        ((), 4, InvalidRequest, "no tokens"),
        ((1, 9999), 4, InvalidRequest, "outside 0 to"),
        ((1, -1), 4, InvalidRequest, "outside 0 to"),
        ((1,) * 250, 10, ContextLengthExceeded, "256 tokens; the prompt's 250 and max_tokens 10"),
    ],
)
def test_what_cannot_be_run_is_refused_at_submission(
    engine: Engine, prompt: tuple[int, ...], max_tokens: int, error: type, says: str
) -> None:
    sampling = replace(GREEDY, max_tokens=max_tokens)
    with pytest.raises(error, match=says):
        engine.submit(GenerationRequest("x", prompt, sampling))
    assert not engine.has_work()


def test_an_id_in_use_is_refused(engine: Engine) -> None:
    engine.submit(request("a"))
    with pytest.raises(InvalidRequest, match="running"):
        engine.submit(request("a"))
    run(engine)


def reply_of(engine: Engine) -> Done | Failed:
    """Steps until there is one."""
    for _ in range(200):
        if replies := engine.replies():
            (reply,) = replies
            return reply
        if engine.has_work():
            engine.step()
        engine.check()
    raise AssertionError("no reply")


def test_a_prefetched_adapter_is_there_before_it_is_asked_for(engine: Engine) -> None:
    good = engine._residency._loader._source.digests["all"]  # type: ignore[attr-defined]
    engine.arrange(Prefetch("p", good, "host"))
    assert reply_of(engine) == Done("p")
    assert engine.stats().residency == {good: "host"}
    engine.arrange(Prefetch("q", good))
    assert reply_of(engine) == Done("q")
    assert engine.stats().residency == {good: "slot"}
    engine.submit(request("a", good))
    run(engine)
    assert (engine.stats().slot_hits, engine.stats().slot_misses) == (1, 0)


def test_a_pin_is_shown_and_ends(engine: Engine) -> None:
    good = engine._residency._loader._source.digests["all"]  # type: ignore[attr-defined]
    engine.arrange(Pin("p", good))
    assert reply_of(engine) == Done("p")
    assert engine.stats().pinned == (good,)
    with pytest.raises(Conflict, match="2 slots, 1 of them pinned"):
        engine.arrange(Pin("q", "other"))
    engine.arrange(Unpin("u", good))
    assert reply_of(engine) == Done("u")
    assert engine.stats().pinned == ()
    engine.arrange(Pin("r", good, 0.01))
    assert reply_of(engine) == Done("r")
    assert engine.idle_s() is not None
    while engine.stats().pinned:
        if engine.has_work():
            engine.step()
    assert engine.idle_s() is None


@pytest.mark.parametrize(
    ("adapter", "code"), [("missing", "adapter_not_found"), ("crash", "adapter_load_failed")]
)
def test_a_prefetch_that_cannot_be_read_fails_as_a_request_does(
    engine: Engine, adapter: str, code: str
) -> None:
    engine.arrange(Prefetch("p", adapter))
    reply = reply_of(engine)
    assert isinstance(reply, Failed)
    assert (reply.request_id, reply.code) == ("p", code)
    engine.submit(request("p", adapter))  # ids of requests are others
    assert run(engine)[1]["p"].code == code
    assert engine.replies() == []


def test_streams_wait_for_few_fills_between_two_steps(
    folders: tuple[Path, dict[str, Path]], tmp_path: Path
) -> None:
    """Seven adapters are in the host cache when they are all asked for at once."""
    base, _ = folders
    made = {
        f"a{number}": make_adapter(base, LLAMA, RECIPES[0], tmp_path / f"a{number}", seed=number)
        for number in range(7)
    }
    source = FolderSource(made)
    config = EngineConfig(model=str(base), blobs="", dtype="float32", max_resident_adapters=8)
    engine = Engine(config, source)
    try:
        for name, digest in source.digests.items():
            engine.arrange(Prefetch(name, digest, "host"))
            assert reply_of(engine) == Done(name)
        engine.submit(request("stream", max_tokens=40))
        engine.step()
        for name, digest in source.digests.items():
            engine.submit(request(name, digest, max_tokens=40))
        fills = [0]
        while fills[-1] < 7:
            engine.step()
            fills.append(engine.stats().loads["host"])
        steps = [later - earlier for earlier, later in pairwise(fills)]
        assert max(steps) == MAX_FILLS
        assert len(steps) == -(-7 // MAX_FILLS)
        run(engine)
    finally:
        engine.close()
