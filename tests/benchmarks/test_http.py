"""The HTTP benchmark at tiny size: its figures add up, and a wrong reply stops it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.http import command, replies
from benchmarks.http.load import ADAPTERS, Load, Shape, closed, poisson, running_and_long
from benchmarks.http.replies import BadReply, Reply, token_times
from benchmarks.http.scenarios import Plan, gaps_within, percentile
from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

# peft asks transformers 5 for a property that is deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SHAPE = Shape(("x", "y"), vocab=50, prompt_tokens=3, new_tokens=4)
TINY = Plan(
    saturating=4,
    ceiling_requests=6,
    shares=(0.4, 0.8),
    seconds=0.3,
    passes=2,
    beside=4,
    beside_requests=6,
    beside_repeats=2,
    streams=24,
    running=2,
    running_tokens=24,
    long_prompt=40,
    long_after=4,
    long_repeats=1,
)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A tiny base and sixteen adapters where the benchmark keeps its own."""
    base = make_base(LLAMA, tmp_path / "base")
    for number in range(ADAPTERS):
        folder = tmp_path / "adapters" / f"a{number:02}"
        make_adapter(base, LLAMA, RECIPES[0], folder, seed=number)
    return tmp_path


def test_measures_and_writes(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command, "Plan", lambda: TINY)
    options = ["--work", str(work), "--threads", "1", "--dtype", "float32", "--kv-cache-mib", "16"]
    options += ["--prompt-tokens", "12", "--new-tokens", "6"]
    options += ["--results", str(tmp_path / "results")]
    done = CliRunner().invoke(command.app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "results" / "http.json").read_text())
    assert [len(rate["passes"]) for rate in result["rates"]] == [2, 2]
    assert result["streams"]["complete"] == TINY.streams
    assert len(result["beside"]["http"]) == len(result["beside"]["engine"]) == 2
    assert all(one["api_of_step"] > 0 for one in result["beside"]["shares"])
    assert str(work) not in json.dumps(result)
    text = (tmp_path / "results" / "http.md").read_text()
    assert "| 24 streams at once: complete, of the right length | 24 of 24 | 24 |" in text
    assert (tmp_path / "results" / "http.svg").read_text().count("<rect") > 4


def test_loads_are_drawn_from_their_seed():
    load = poisson(SHAPE, per_s=40, seconds=5, seed=1)
    assert load == poisson(SHAPE, per_s=40, seconds=5, seed=1)
    assert load != poisson(SHAPE, per_s=40, seconds=5, seed=2)
    assert 150 < len(load.asks) < 250
    assert [ask.due_s for ask in load.asks] == sorted(ask.due_s for ask in load.asks)
    assert len(poisson(SHAPE, per_s=0.001, seconds=1, seed=1).asks) == 1
    assert Load.from_json(load.to_json()) == load
    assert [ask.model for ask in closed(SHAPE, 3, 2, seed=1).asks] == ["x", "y", "x"]
    *running, long = running_and_long(SHAPE, 2, 9, after=3, seed=1).asks
    assert (len(running), len(long.prompt), long.after_events) == (2, 9, 3)


def chunk(text: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text.encode())


HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = 'data: {"choices":[{"text":"a"}],"usage":null}\n\n'
END = 'data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n'


def test_a_token_comes_with_the_piece_that_completes_it():
    whole = chunk(TOKEN)
    pieces = [(1.0, HEAD + whole[:20]), (2.0, whole[20:]), (3.0, whole), (4.0, chunk(END) + b"0")]
    assert token_times([*pieces, (5.0, b"\r\n\r\n")], 2) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HEAD + chunk(TOKEN) + chunk(END) + b"0\r\n\r\n", "1 came, the usage says 2"),
        (HEAD + 2 * chunk(TOKEN), "closed early"),
        (HEAD + 2 * chunk(TOKEN) + b"0\r\n\r\n", "cut short"),
        (HEAD + chunk('data: {"error":{"message":"gone"}}\n\n') + b"0\r\n\r\n", "gone"),
        (b"HTTP/1.1 429 Too Many\r\ncontent-length: 4\r\n\r\nbusy", "status 429: busy"),
        (b"", "closed early; status None"),
        (b"nothing of the kind\r\n\r\n", "no HTTP"),
    ],
)
def test_a_reply_that_is_not_whole_is_refused(data: bytes, why: str):
    with pytest.raises(BadReply, match=why):
        token_times([(1.0, data)] if data else [], 2)


def test_gaps_count_that_overlap_the_time_of_the_long_prompt():
    reply = Reply(0.0, 0.0, (1.0, 2.0, 4.0, 5.0))
    assert gaps_within([reply], 1.5, 3.0) == [1.0, 2.0]
    assert reply.gaps_s == (1.0, 2.0, 1.0)
    assert reply.ttft_s == 1.0


def test_percentiles_are_of_the_nearest_rank():
    assert percentile(range(100), 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    with pytest.raises(ValueError, match="no measurement"):
        percentile([], 0.5)


def test_a_request_is_one_that_uvicorn_reads():
    data = replies.request_of({"a": 1}, "h:1")
    head, _, body = data.partition(b"\r\n\r\n")
    assert json.loads(body) == {"a": 1}
    assert b"content-length: 8" in head
