"""`python -m benchmarks speculative`: tokens per second with guesses from the text, and without.

W1's base and adapters, in this process, without HTTP. Two texts, at the two ends: one that is held
to a loop by its penalty, where every guess after the first few comes true, and the random model's
own, where next to none does and what shows is the cost of trying. Before any time counts, both
engines must give the same tokens in float32.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

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
CHECK_TOKENS = 24
PROMPT_TOKENS = 64
TEXTS = {"loop": -100.0, "random": 0.0}
"""Each text's presence penalty: so negative, the first token that is said is said for ever."""

FIGURES_HEAD = ("run", "tokens/s", "of the guesses came true")
RATIOS_HEAD = ("ratio of tokens/s", "median (least-most)")

Dtype = Literal["bfloat16", "float32"]

app = typer.Typer(add_completion=False)


class WrongTokens(Exception):
    """Guessing changed an answer: no time would mean anything."""


@dataclass(frozen=True, slots=True)
class Job:
    dtype: Dtype
    sequences: tuple[int, ...]  # at once; each under an adapter of its own
    new_tokens: int
    guesses: int  # per sequence and step, at most
    threads: int


@dataclass(frozen=True, slots=True)
class Played:
    """What all sequences said, and how fast, once each had its first token."""

    tokens_per_s: float
    tokens: tuple[tuple[int, ...], ...]
    accepted: int
    guessed: int


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/. `tokens_per_s` by run, in order of the repeats."""

    machine: Machine
    job: Job
    tokens_checked: int
    tokens_per_s: dict[str, list[float]]
    came_true: dict[str, float]  # of the guesses, by run; those that made none are absent

    def ratio(self, case: str) -> Spread:
        return ratios(self.tokens_per_s[f"{case}, guessing"], self.tokens_per_s[f"{case}, plain"])


class Player:
    """Plays a text to its end on one engine."""

    def __init__(self, engine: Engine, digests: dict[str, str], workload: Workload) -> None:
        self._engine = engine
        self._digests = digests
        self._workload = workload

    def play(self, text: str, sequences: int, new_tokens: int) -> Played:
        """`sequences` requests at once, from submission to the last one's end."""
        sampling = SamplingParams(
            new_tokens, temperature=0.0, ignore_eos=True, presence_penalty=TEXTS[text]
        )
        for number in range(sequences):
            name = self._workload.names[number]
            digest = None if name is None else self._digests[name]
            prompt = self._workload.prompts[number]
            self._engine.submit(GenerationRequest(str(number), prompt, sampling, digest))
        before, said = self._engine.stats(), [[] for _ in range(sequences)]
        began = self._step_until_all_began(said)
        early = sum(map(len, said))
        while self._engine.has_work():
            self._step(said)
        seconds = time.perf_counter() - began
        after = self._engine.stats()
        return Played(
            (sequences * new_tokens - early) / seconds,
            tuple(tuple(tokens) for tokens in said),
            after.accepted_tokens - before.accepted_tokens,
            after.drafted_tokens - before.drafted_tokens,
        )

    def _step_until_all_began(self, said: list[list[int]]) -> float:
        while not all(said):
            self._step(said)
        return time.perf_counter()

    def _step(self, said: list[list[int]]) -> None:
        for event in self._engine.step():
            assert isinstance(event, TokenEvent) and event.token_id is not None, event
            said[int(event.request_id)].append(event.token_id)


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the random model and adapters are kept.")] = HERE
    / ".work",
    dtype: Annotated[Dtype, typer.Option()] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    sequences: Annotated[list[int] | None, typer.Option(min=1, help="At once; 1 and 8.")] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per sequence.")] = 128,
    guesses: Annotated[int, typer.Option(min=1, help="--speculative-tokens.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="torch's.")] = 2,
    check: Annotated[bool, typer.Option(help="Compare tokens in float32 first.")] = True,
    results: Annotated[
        Path, typer.Option(help="Folder for speculative.json and speculative.md.")
    ] = HERE / "results",
) -> None:
    """Measures decoding with guesses from the text itself, and without."""
    console = Console()
    machine = describe()
    job = Job(dtype, tuple(sequences or (1, 8)), new_tokens, guesses, threads)
    scenario = scenario_of(job)
    with console.status("making the model and its adapters, once"):
        w1.prepare(work, [scenario])
    workload = read(work, scenario)
    with console.status("comparing tokens in float32"):
        checked = check_tokens(workload, job) if check else 0
    with console.status("measuring"):
        tokens_per_s, came_true = measure(workload, job, repeats)
    result = Result(machine, job, checked, tokens_per_s, came_true)
    for head, rows in ((FIGURES_HEAD, figure_rows(result)), (RATIOS_HEAD, ratio_rows(result))):
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    write(result, results)


def scenario_of(job: Job) -> Scenario:
    """As many sequences as the job has at most, each under an adapter of its own."""
    most = max(job.sequences)
    return Scenario("mixed", sequences=most, adapters=most, prompt_tokens=PROMPT_TOKENS)


@contextmanager
def players(workload: Workload, job: Job, dtype: Dtype) -> Iterator[dict[str, Player]]:
    """Two engines, one that guesses and one that does not, closed at the end."""
    with ExitStack() as stack:
        made = {}
        for name, guesses in (("plain", 0), ("guessing", job.guesses)):
            source = FolderSource(workload.adapters)
            config = EngineConfig(
                model=str(workload.base),
                blobs="",
                dtype=dtype,
                device="cpu",
                max_resident_adapters=len(workload.adapters),
                kv_cache_bytes=1 << 28,
                speculative_tokens=guesses,
                threads=job.threads,
            )
            engine = Engine(config, source)
            stack.callback(engine.close)
            made[name] = Player(engine, source.digests, workload)
        yield made


def check_tokens(workload: Workload, job: Job) -> int:
    """Compares what both engines say, in float32; returns how many tokens were compared.

    Raises WrongTokens if any differs, or if the loop was never guessed.
    """
    checked = 0
    with players(workload, job, "float32") as made:
        for text in TEXTS:
            plain, guessing = (
                made[name].play(text, max(job.sequences), CHECK_TOKENS)
                for name in ("plain", "guessing")
            )
            if plain.tokens != guessing.tokens:
                raise WrongTokens(f"{text}: guessing says other tokens than plain decoding")
            if text == "loop" and not guessing.accepted:
                raise WrongTokens("no guess came true in a text that repeats itself")
            checked += sum(map(len, plain.tokens))
    return checked


def measure(
    workload: Workload, job: Job, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Tokens per second by run, plain and guessing in turn, after a warm-up of each; and the share
    of the guesses that came true."""
    tokens_per_s: dict[str, list[float]] = {}
    counts: dict[str, tuple[int, int]] = {}
    with players(workload, job, job.dtype) as made:
        for number in range(repeats + 1):
            for text in TEXTS:
                for sequences in job.sequences:
                    for name, player in made.items():
                        played = player.play(text, sequences, job.new_tokens)
                        if number == 0:  # the adapters were not resident, nor torch warm
                            continue
                        run = f"{case(text, sequences)}, {name}"
                        tokens_per_s.setdefault(run, []).append(played.tokens_per_s)
                        accepted, guessed = counts.get(run, (0, 0))
                        counts[run] = accepted + played.accepted, guessed + played.guessed
    return tokens_per_s, {run: hit / of for run, (hit, of) in counts.items() if of}


def case(text: str, sequences: int) -> str:
    return f"{text}, {sequences} at once"


def figure_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per run: name, tokens per second, share of the guesses that came true."""
    return [
        (
            run,
            spread(values).text(),
            f"{result.came_true[run]:.0%}" if run in result.came_true else "",
        )
        for run, values in result.tokens_per_s.items()
    ]


def ratio_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per text and number of sequences: guessing over plain of the same repeat."""
    cases = [case(text, sequences) for text in TEXTS for sequences in result.job.sequences]
    return [(f"{one}: guessing / plain", result.ratio(one).text(2)) for one in cases]


def write(result: Result, folder: Path) -> None:
    """Writes speculative.json (every repeat) and speculative.md (medians) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speculative.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "speculative.md").write_text(_markdown(result))


def _markdown(result: Result) -> str:
    job, repeats = result.job, len(next(iter(result.tokens_per_s.values())))
    checked = (
        f"Before that, {result.tokens_checked} tokens were compared in float32: they were the "
        "same with guesses and without."
        if result.tokens_checked
        else "Tokens were not compared in this run."
    )
    lines = [
        "# Guesses from the text itself",
        "",
        f"A random Llama of SmolLM2-135M's shape, {job.dtype}, rank-{RANK} adapters on every "
        f"linear, another for each sequence; {PROMPT_TOKENS} tokens of prompt and "
        f"{job.new_tokens} of answer, greedy; at most {job.guesses} guesses per sequence and "
        "step. `loop` says one token again and again, held to it by its penalty: as much as "
        "guessing can give. `random` is the random model's own text, which repeats nothing: what "
        "trying costs. Tokens per second over all sequences once each had its first token, "
        f"in-process; medians of {repeats} interleaved repeats (least-most), ratios of the same "
        f"repeat. {checked}",
        "",
        *table(FIGURES_HEAD, figure_rows(result)),
        "",
        *table(RATIOS_HEAD, ratio_rows(result)),
        "",
        f"Machine: {result.machine.text()}; {job.threads} threads.",
        "",
        "Made by `python -m benchmarks speculative`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()
