"""`python -m benchmarks.http.in_process`: the same loads on an Engine, without HTTP.

Reads a Setup line, then a Load per line; answers each with tokens and seconds. Only loads with
`at_once`, as fast as they go.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.folder_source import FolderSource
from benchmarks.http.load import Load
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent


@dataclass(frozen=True, slots=True)
class Setup:
    """What the server is started with, too."""

    base: str
    adapters: dict[str, str]  # folders by name
    dtype: str
    threads: int
    kv_cache_bytes: int

    def options(self) -> tuple[str, ...]:
        """The same for `adapterd serve`."""
        return (
            "--dtype", self.dtype, "--threads", str(self.threads), "--device", "cpu",
            "--kv-cache-bytes", str(self.kv_cache_bytes), "--log-level", "warning",
            "--max-resident-adapters", str(len(self.adapters)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finished:
    tokens: int
    seconds: float


@contextmanager
def engine_of(setup: Setup) -> Iterator[tuple[Engine, dict[str, str]]]:
    """The engine, and its adapters' digests by name."""
    source = FolderSource({name: Path(folder) for name, folder in setup.adapters.items()})
    config = EngineConfig(
        model=setup.base,
        blobs="",
        dtype=setup.dtype,
        device="cpu",
        max_resident_adapters=len(setup.adapters),
        kv_cache_bytes=setup.kv_cache_bytes,
        threads=setup.threads,
    )
    engine = Engine(config, source)
    try:
        yield engine, dict(source.digests)
    finally:
        engine.close()


def run(engine: Engine, digests: dict[str, str], load: Load) -> Finished:
    """Steps until every ask has its tokens."""
    waiting = list(enumerate(load.asks))[::-1]
    left = {number: ask.new_tokens for number, ask in waiting}
    tokens, running = 0, 0
    start = time.perf_counter()
    while left:
        while waiting and running < (load.at_once or len(load.asks)):
            number, ask = waiting.pop()
            sampling = SamplingParams(ask.new_tokens, temperature=0.0, ignore_eos=True)
            digest = digests[ask.model]
            engine.submit(GenerationRequest(str(number), ask.prompt, sampling, digest))
            running += 1
        for event in engine.step():
            assert isinstance(event, TokenEvent), event
            tokens += event.token_id is not None
            if event.finish_reason is not None:
                del left[int(event.request_id)]
                running -= 1
    return Finished(tokens, time.perf_counter() - start)


def main() -> None:
    """Until standard input ends."""
    setup = Setup(**json.loads(sys.stdin.readline()))
    with engine_of(setup) as (engine, digests):
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(run(engine, digests, Load.from_json(line)))), flush=True)


if __name__ == "__main__":
    main()
