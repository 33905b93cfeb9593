"""The wire: every message comes through as it was, and nothing else becomes a message."""

import dataclasses
from typing import Any, get_args

import msgspec
import pytest

from adapters_store.content import LinearShape
from server.engine.messages import (
    Abort,
    Done,
    EngineConfig,
    EngineInfo,
    Failed,
    FromEngine,
    GenerationRequest,
    LoadProgress,
    Pin,
    Prefetch,
    Ready,
    SamplingParams,
    Shutdown,
    Start,
    Stats,
    Submit,
    Timing,
    ToEngine,
    TokenEvent,
    Tokens,
    Unpin,
)
from server.engine.wire import FROM_ENGINE, HEADER, TO_ENGINE, Codec

PARAMS = SamplingParams(7, seed=-(2**63), stop_token_ids=(1, 2), logprobs=3, temperature=0)
INFO = EngineInfo(
    "Llama", "d" * 64, "bfloat16", "cpu", 10, 20, (1,), 5, 16, 1, "torch", "none",
    {"model.q_proj": LinearShape(3, 4)}, {"model.q_proj": 2.5}, 64, 28, 0.5,
)  # fmt: skip
EVENTS = (
    TokenEvent("a", 0, 5, None, -0.5, ((5, -0.5), (6, -1.0)), Timing(0.1, 0.0, 0.2), 4),
    TokenEvent("b", 1, None, "abort"),
)
TO = [
    Start(EngineConfig("m", "b", kv_cache_bytes=1 << 40)),
    Submit(GenerationRequest("a", (3, 1, 4), PARAMS, "d" * 64, 2, "sält")),
    Abort("a"),
    Abort("a", 1),
    Shutdown(),
    Prefetch("a", "d" * 64, "host"),
    Pin("a", "d" * 64),
    Pin("a", "d" * 64, 1.5),
    Unpin("a", "d" * 64),
]
FROM = [
    LoadProgress("weights", 1, 2),
    Ready(INFO),
    Tokens(EVENTS),
    Tokens((dataclasses.replace(EVENTS[0], logprob=float("-inf")),)),
    Failed(None, "engine_failed", "out of memory"),
    Done("a"),
    Stats(
        running=3,
        load_s={"disk": 0.5},
        residency={"d": "slot"},
        waiting_adapters=("d",),
        pinned=("d",),
    ),
]
CASES = [(TO_ENGINE, one) for one in TO] + [(FROM_ENGINE, one) for one in FROM]


def parts(frame: bytes) -> tuple[int, bytes]:
    length, kind = HEADER.unpack(frame[: HEADER.size])
    assert length == len(frame) - HEADER.size
    return kind, frame[HEADER.size :]


def test_every_message_has_a_case() -> None:
    assert {type(one) for one in TO} == set(get_args(ToEngine))
    assert {type(one) for one in FROM} == set(get_args(FromEngine))


@pytest.mark.parametrize(("codec", "message"), CASES)
def test_it_comes_through_as_it_was(codec: Codec[Any], message: object) -> None:
    back = codec.message(*parts(codec.frame(message)))
    assert back == message
    assert type(back) is type(message)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (2, {"request_id": 5}),
        (2, {}),
        (2, ["a"]),
        (1, {"request": {"id": "a", "prompt": [1.5], "sampling": {"max_tokens": 1}}}),
        (1, {"request": {"id": "a", "prompt": [True], "sampling": {"max_tokens": 1}}}),
        (4, {"request_id": "a", "digest": "d", "to": "disk"}),
        (9, {}),
    ],
)
def test_nothing_else_becomes_a_message(kind: int, said: object) -> None:
    with pytest.raises(ValueError):
        TO_ENGINE.message(kind, msgspec.msgpack.encode(said))


def test_a_frame_that_was_cut_is_refused() -> None:
    kind, body = parts(FROM_ENGINE.frame(Tokens(EVENTS)))
    for length in range(len(body)):
        with pytest.raises(ValueError):
            FROM_ENGINE.message(kind, body[:length])


def test_neither_side_takes_what_only_the_other_may_say() -> None:
    with pytest.raises(KeyError):
        TO_ENGINE.frame(Tokens(EVENTS))  # type: ignore[arg-type]
