"""`python -m benchmarks peers`: W1 and its variants, this project's engine beside its peers.

Each contestant in a process and, if it is not ours, an environment of its own, one at a time,
interleaved, so that a slow minute of the machine falls on all of them. Before a contestant's speed
counts in a scenario, its tokens there must be peft's in float32.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from benchmarks import floor, report, venvs
from benchmarks.contestants.job import (
    ROOT,
    ContestantFailed,
    Dtype,
    Job,
    Measurement,
    Who,
    in_own_process,
)
from benchmarks.floor import Floor, Shape, decode_cost, prefill_cost
from benchmarks.machine import describe
from benchmarks.report import Cell, Check, Results
from benchmarks.workload import Scenario

HERE = Path(__file__).parent
CHECK_PROMPT_TOKENS, CHECK_TOKENS = 48, 6
OURS: tuple[Who, ...] = ("adapterd", "peft", "peft-merged")  # these run where this does
SCENARIOS = {
    "base": Scenario("base"),
    "single": Scenario("single"),
    "mixed-4": Scenario("mixed", adapters=4),
    "mixed-16": Scenario("mixed"),
    "ranks-8-16-64": Scenario("ranks"),
    "mixed-16-rank-64": Scenario("high-rank"),
    "zipf-64": Scenario("zipf", adapters=64),
    "base-1-request": Scenario("base", sequences=1),
    "single-1-request": Scenario("single", sequences=1),
    "base-64-requests": Scenario("base", sequences=64),
    "mixed-64-requests": Scenario("mixed", sequences=64, adapters=64),
    "rank-8-64-requests": Scenario("low-rank", sequences=64, adapters=64),
    "one-of-rank-128-64-requests": Scenario("one-high-rank", sequences=64, adapters=64),
    "base-prompt-1024": Scenario("base", prompt_tokens=1024),
    "mixed-16-prompt-1024": Scenario("mixed", prompt_tokens=1024),
}

app = typer.Typer(add_completion=False)


class NothingToCompareWith(Exception):
    """peft itself gave no tokens, or its adapters change nothing: no check would mean anything."""


@dataclass(frozen=True, slots=True)
class Run:
    """What all measurements share."""

    work: Path
    dtype: Dtype
    new_tokens: int
    threads: int
    timeout_s: float
    pythons: dict[Who, Path]  # of the peers; ours run in this one

    def measure(self, who: Who, scenario: Scenario) -> Measurement:
        """Raises ContestantFailed."""
        return self._run(self._job(who, scenario))

    def check(self, who: Who, scenario: Scenario) -> tuple[tuple[int, ...], ...]:
        """Its tokens for short prompts in float32. Raises ContestantFailed."""
        short = dataclasses.replace(scenario, prompt_tokens=CHECK_PROMPT_TOKENS)
        job = self._job(who, short)
        return self._run(dataclasses.replace(job, dtype="float32", new_tokens=CHECK_TOKENS)).tokens

    def _job(self, who: Who, scenario: Scenario) -> Job:
        return Job(
            who=who,
            work=str(self.work),
            dtype=self.dtype,
            new_tokens=self.new_tokens,
            threads=self.threads,
            **asdict(scenario),
        )

    def _run(self, job: Job) -> Measurement:
        if job.who in OURS:
            return in_own_process(job, timeout_s=self.timeout_s)
        variables = venvs.environment(job.who, self.work / "venvs")
        python = self.pythons[job.who]
        return in_own_process(job, python=python, variables=variables, timeout_s=self.timeout_s)


@app.command()
def main(
    work: Annotated[
        Path, typer.Option(help="Where models, adapters and the peers' environments are kept.")
    ] = HERE / ".work",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    scenario: Annotated[
        list[str] | None, typer.Option(help=f"Only this one; repeatable: {', '.join(SCENARIOS)}.")
    ] = None,
    contestant: Annotated[
        list[str] | None,
        typer.Option(help=f"Only this one; repeatable: {', '.join(get_args(Who))}."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per request.")] = 64,
    threads: Annotated[int, typer.Option(min=1, help="In every contestant.")] = 2,
    timeout_s: Annotated[float, typer.Option(help="Longest that one run may take.")] = 1800,
    install: Annotated[bool, typer.Option(help="Make environments that are missing.")] = True,
    check: Annotated[bool, typer.Option(help="Compare tokens in float32 first.")] = True,
    results: Annotated[Path, typer.Option(help="Folder for peers.json, .md and .svg.")] = HERE
    / "results",
) -> None:
    """Measures W1 and its variants beside the peers that can be installed. Takes hours."""
    from benchmarks import w1  # brings torch, which --help does not wait for

    console, work = Console(), work.resolve()
    chosen = {name: SCENARIOS[name] for name in _known(scenario, SCENARIOS, "scenario")}
    wanted = _known(contestant, get_args(Who), "contestant")
    machine = describe()
    pythons, versions, skipped = _environments(work / "venvs", wanted, install, console)
    run = Run(work, "bfloat16", new_tokens, threads, timeout_s, pythons)
    with console.status("making the model and its adapters, once"):
        w1.prepare(work, list(chosen.values()))
    here = [who for who in get_args(Who) if who in wanted and who not in skipped]
    cells = {name: _cells(one, here) for name, one in chosen.items()}
    if check:
        check_all(run, chosen, cells, console)
    floors: list[Floor] = []
    shape = Shape.of(work / "base")
    outcome = Results(
        machine=machine,
        job={
            "dtype": run.dtype, "new_tokens": new_tokens, "threads": threads,
            "check_prompt_tokens": CHECK_PROMPT_TOKENS, "check_tokens": CHECK_TOKENS,
        },
        versions=versions,
        skipped=skipped,
        scenarios=chosen,
        decode_cost={
            name: decode_cost(shape, one, one.prompt_tokens + new_tokens // 2)
            for name, one in chosen.items()
        },
        prefill_cost={name: prefill_cost(shape, one) for name, one in chosen.items()},
        floors=floors,
        cells=cells,
    )  # fmt: skip
    for number in range(repeats):
        console.rule(f"repeat {number + 1} of {repeats}")
        floors.append(floor.in_own_process(threads))
        measure_all(run, chosen, cells, console)
        report.write(outcome, results)  # what there is so far, should the next repeat be cut off
    console.print(f"{results / 'peers.md'} is written")


def _cells(scenario: Scenario, contestants: list[Who]) -> dict[Who, Cell]:
    """Of those that can run the scenario at all: only one adapter can be merged."""
    single = scenario.traffic == "single"
    return {who: Cell() for who in contestants if single or who != "peft-merged"}


def _known(asked: list[str] | None, known: object, what: str) -> list[str]:
    """What was asked for, in the known order; all of them by default. Raises BadParameter."""
    names = list(known)  # type: ignore[call-overload]
    if unknown := set(asked or ()) - set(names):
        raise typer.BadParameter(f"no {what} is called {', '.join(sorted(unknown))}")
    return [name for name in names if not asked or name in asked]


def _environments(
    folder: Path, wanted: list[str], install: bool, console: Console
) -> tuple[dict[Who, Path], dict[str, dict[str, str]], dict[str, str]]:
    """The peers' interpreters and versions; and those that are left out, with the reason."""
    pythons: dict[Who, Path] = {}
    versions: dict[str, dict[str, str]] = {}
    skipped: dict[str, str] = {}
    for peer in venvs.PEERS:
        if peer.who not in wanted:
            continue
        try:
            with console.status(f"environment of {peer.title}, made once"):
                pythons[peer.who] = venvs.python_of(peer, folder, install=install)
                versions[peer.who] = venvs.versions(peer, pythons[peer.who])
        except venvs.Unavailable as error:
            skipped[peer.who] = _private(str(error))
            console.print(f"{peer.title} is left out: {error}")
    return pythons, versions, skipped


def check_all(
    run: Run,
    scenarios: dict[str, Scenario],
    cells: dict[str, dict[Who, Cell]],
    console: Console,
) -> None:
    """Fills each cell's check; a contestant that is wrong, or fails, has a reason afterwards.

    Raises NothingToCompareWith.
    """
    wanted: dict[Scenario, tuple[tuple[int, ...], ...]] = {}
    answers: dict[tuple[Who, Scenario], Check | str] = {}
    for name, scenario in scenarios.items():
        short = dataclasses.replace(scenario, prompt_tokens=CHECK_PROMPT_TOKENS)
        _reference(run, short, wanted)
        for who, cell in cells[name].items():
            if who == "peft":
                cell.check = Check.of(wanted[short], wanted[short])
                continue
            if (who, short) not in answers:
                answers[who, short] = _checked(run, who, short, wanted[short])
            answer = answers[who, short]
            if isinstance(answer, str):
                cell.reason = answer
            else:
                cell.check = answer
                cell.reason = None if answer.right else "wrong: not peft's tokens"
            console.print(f"{name}, {who}: {cell.reason or answer}")


def _reference(
    run: Run, scenario: Scenario, known: dict[Scenario, tuple[tuple[int, ...], ...]]
) -> None:
    """Adds peft's tokens to `known`; adapters must have changed each request's."""
    base = Scenario("base", scenario.sequences, prompt_tokens=scenario.prompt_tokens)
    for missing in [one for one in dict.fromkeys((base, scenario)) if one not in known]:
        try:
            known[missing] = run.check("peft", missing)
        except ContestantFailed as error:
            raise NothingToCompareWith(str(error)) from error
    pairs = zip(known[scenario], known[base], strict=True)
    idle = [at for at, (tokens, plain) in enumerate(pairs) if tokens == plain]
    if idle and scenario.traffic != "base":
        raise NothingToCompareWith(f"requests {idle}: the adapter leaves the base's tokens")


def _checked(
    run: Run, who: Who, scenario: Scenario, wanted: tuple[tuple[int, ...], ...]
) -> Check | str:
    """A text says how it failed."""
    try:
        return Check.of(run.check(who, scenario), wanted)
    except ContestantFailed as error:
        return _failure(error)


def measure_all(
    run: Run,
    scenarios: dict[str, Scenario],
    cells: dict[str, dict[Who, Cell]],
    console: Console,
) -> None:
    """Every cell that has no reason against it, once."""
    for name, who, cell in _runnable(cells):
        try:
            one = run.measure(who, scenarios[name])
        except ContestantFailed as error:
            cell.reason = _failure(error)
            console.print(f"{name}, {who}: {cell.reason}")
            continue
        cell.add(one)
        console.print(f"{name}, {who}: {one.tokens_per_s:.1f} tok/s")


def _runnable(cells: dict[str, dict[Who, Cell]]) -> Iterator[tuple[str, Who, Cell]]:
    for name, row in cells.items():
        for who, cell in row.items():
            if cell.reason is None:
                yield name, who, cell


def _failure(error: ContestantFailed) -> str:
    """Its last line, which is what an exception says of itself."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return _private(f"failed: {lines[-1].strip()[:200]}")


def _private(text: str) -> str:
    """Without this machine's folders: results are committed."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")
