"""`python -m benchmarks.prefix`: time to first token behind a shared system prompt, cold and warm.

W1's base, and one of its adapters, in this process, without HTTP. Cold and warm are the very same
prompt: warm under the salt under which another question was asked behind the same system prompt
before, cold under one of its own. Before any time counts, both must give the same tokens in
float32.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import w1
from benchmarks.folder_source import FolderSource
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.spread import Spread, ratios, spread
from benchmarks.workload import RANK, Scenario, Workload, read
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, GenerationRequest, SamplingParams, TokenEvent

HERE = Path(__file__).parent
CHECK_TOKENS = 6
ONE = Scenario("single", sequences=1, adapters=1)
ASKED = 8.0  # least ratio of cold to warm that the issue asks for
VERSIONS = ("base", "adapter")
FIGURES_HEAD = ("run", "time to first token, s")
RATIOS_HEAD = ("ratio of times", "median (least-most)", "asked for")

Dtype = Literal["bfloat16", "float32"]

app = typer.Typer(add_completion=False)


class WrongTokens(Exception):
    """Warm differs from cold, or found what it should not: no time would mean anything."""


@dataclass(frozen=True, slots=True)
class Job:
    dtype: Dtype
    system_tokens: int
    question_tokens: int
    threads: int


@dataclass(frozen=True, slots=True)
class Reply:
    """`cached` are the prompt's tokens that did not have to be computed."""

    ttft_s: float
    tokens: tuple[int, ...]
    cached: int


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/. Times by run, in order of the repeats."""

    machine: Machine
    job: Job
    tokens_checked: int
    ttft_s: dict[str, list[float]]

    def ratio(self, version: str) -> Spread:
        return ratios(self.ttft_s[f"{version} cold"], self.ttft_s[f"{version} warm"])


class Asker:
    """Asks one engine one thing at a time, as the base or as the adapter."""

    def __init__(self, engine: Engine, adapter: str, job: Job) -> None:
        self._engine = engine
        self._digests = {"base": None, "adapter": adapter}
        self._job = job
        self._asked = 0

    def pair(self, version: str, number: int, new_tokens: int = 1) -> tuple[Reply, Reply]:
        """The replies to prompt `number`, cold and warm. Raises WrongTokens."""
        system = self._random(self._job.system_tokens, 3 * number)
        others = self._random(self._job.question_tokens, 3 * number + 1)
        question = self._random(self._job.question_tokens, 3 * number + 2)
        self.ask(version, system + others, f"shared {number}", 1)
        warm = self.ask(version, system + question, f"shared {number}", new_tokens)
        cold = self.ask(version, system + question, f"alone {number}", new_tokens)
        size = self._engine.info.block_size
        if (cold.cached, warm.cached) != (0, len(system) // size * size):
            raise WrongTokens(f"cold found {cold.cached} tokens, warm {warm.cached}")
        return cold, warm

    def ask(self, version: str, prompt: tuple[int, ...], salt: str, new_tokens: int) -> Reply:
        """Submits one request and steps to its end."""
        self._asked += 1
        sampling = SamplingParams(new_tokens, temperature=0.0, ignore_eos=True)
        digest = self._digests[version]
        request = GenerationRequest(str(self._asked), prompt, sampling, digest, 1, salt)
        start, ttft_s = time.perf_counter(), 0.0
        events: list[TokenEvent] = []
        self._engine.submit(request)
        while self._engine.has_work():
            for event in self._engine.step():
                assert isinstance(event, TokenEvent), event
                events.append(event)
                ttft_s = ttft_s or time.perf_counter() - start
        tokens = tuple(event.token_id for event in events if event.token_id is not None)
        return Reply(ttft_s, tokens, events[0].cached_tokens or 0)

    def _random(self, count: int, seed: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, self._engine.info.vocab_size, (count,), generator=generator)
        return tuple(ids.tolist())


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the random model and adapters are kept.")] = HERE
    / ".work",
    dtype: Annotated[Dtype, typer.Option()] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    system_tokens: Annotated[int, typer.Option(min=16, help="Shared by all prompts.")] = 1000,
    question_tokens: Annotated[int, typer.Option(min=1, help="Behind them, each its own.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="torch's.")] = 2,
    check: Annotated[bool, typer.Option(help="Compare tokens in float32 first.")] = True,
    results: Annotated[Path, typer.Option(help="Folder for prefix.json and prefix.md.")] = HERE
    / "results",
) -> None:
    """Measures the time to first token with the system prompt cached, and without."""
    console = Console()
    machine = describe()
    job = Job(dtype, system_tokens, question_tokens, threads)
    with console.status("making the model and its adapters, once"):
        w1.prepare(work, [ONE])
    workload = read(work, ONE)
    with console.status("comparing tokens in float32"):
        checked = check_tokens(workload, job) if check else 0
    with console.status("measuring"), asker(workload, job, job.dtype) as asking:
        ttft_s = measure(asking, repeats)
    result = Result(machine, job, checked, ttft_s)
    for head, rows in ((FIGURES_HEAD, figure_rows(result)), (RATIOS_HEAD, ratio_rows(result))):
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    write(result, results)


@contextmanager
def asker(workload: Workload, job: Job, dtype: Dtype) -> Iterator[Asker]:
    """An engine of its own, closed at the end."""
    source = FolderSource({"adapter": next(iter(workload.adapters.values()))})
    config = EngineConfig(
        model=str(workload.base),
        blobs="",
        dtype=dtype,
        device="cpu",
        max_resident_adapters=1,
        kv_cache_bytes=1 << 30,
        threads=job.threads,
    )
    engine = Engine(config, source)
    try:
        yield Asker(engine, source.digests["adapter"], job)
    finally:
        engine.close()


def check_tokens(workload: Workload, job: Job) -> int:
    """Compares warm's tokens with cold's, in float32; returns how many were compared.

    Raises WrongTokens if any differs, or if the adapter leaves the base's answer as it was.
    """
    answers = {}
    with asker(workload, job, "float32") as asking:
        for version in VERSIONS:
            cold, warm = asking.pair(version, 0, CHECK_TOKENS)
            if cold.tokens != warm.tokens:
                raise WrongTokens(f"{version}: {warm.tokens} warm, {cold.tokens} cold")
            answers[version] = cold.tokens
    if answers["base"] == answers["adapter"]:
        raise WrongTokens("the adapter leaves the base's tokens unchanged")
    return sum(map(len, answers.values()))


def measure(asking: Asker, repeats: int) -> dict[str, list[float]]:
    """Seconds to the first token by run, the versions in turn, after a warm-up of each."""
    ttft_s: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        for version in VERSIONS:
            cold, warm = asking.pair(version, number)
            if number > 0:  # at first the adapter was not resident, nor torch warm
                ttft_s.setdefault(f"{version} cold", []).append(cold.ttft_s)
                ttft_s.setdefault(f"{version} warm", []).append(warm.ttft_s)
    return ttft_s


def figure_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per run: name, seconds."""
    return [(name, spread(times).text(3)) for name, times in result.ttft_s.items()]


def ratio_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per version: cold over warm of the same repeat."""
    return [
        (f"{version} cold / {version} warm", result.ratio(version).text(1), f">= {ASKED:g}")
        for version in VERSIONS
    ]


def write(result: Result, folder: Path) -> None:
    """Writes prefix.json (every repeat) and prefix.md (medians) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prefix.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "prefix.md").write_text(_markdown(result))


def _markdown(result: Result) -> str:
    job, repeats = result.job, len(next(iter(result.ttft_s.values())))
    checked = (
        f"Before that, {result.tokens_checked} tokens were compared in float32: warm's equalled "
        "cold's."
        if result.tokens_checked
        else "Tokens were not compared in this run."
    )
    lines = [
        "# A shared system prompt, cold and warm",
        "",
        f"A random Llama of SmolLM2-135M's shape, {job.dtype}, and one rank-{RANK} adapter on "
        f"every linear. A prompt is {job.system_tokens} tokens of system prompt and "
        f"{job.question_tokens} of a question; warm, the system prompt has been asked behind "
        "before, with another question. Seconds from submission to the first token, in-process, "
        f"one request at a time; medians of {repeats} repeats (least-most), each with a system "
        f"prompt of its own; ratios are of the same prompt and repeat. {checked}",
        "",
        *table(FIGURES_HEAD, figure_rows(result)),
        "",
        *table(RATIOS_HEAD, ratio_rows(result)),
        "",
        f"Machine: {result.machine.text()}; {job.threads} threads.",
        "",
        "Made by `python -m benchmarks.prefix`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
