"""`python -m benchmarks mixed`: a batch of many adapters beside the base, and beside peft.

Workload W1, each contestant in a process of its own, one at a time, interleaved, so that a slow
minute of the machine falls on all of them. Before any speed counts, this project's tokens for the
mixed batch must be peft's in float32.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.contestants.job import Job, Measurement, in_own_process
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.spread import Spread, ratios, spread
from benchmarks.workload import ADAPTERS, RANK, Scenario

HERE = Path(__file__).parent
CHECK_TOKENS = 6  # per sequence, in float32; peft's mixed prefill is what takes the time
RUNS = {
    "adapterd base": ("adapterd", "base"),
    "adapterd mixed-16": ("adapterd", "mixed"),
    "peft base": ("peft", "base"),
    "peft mixed-16": ("peft", "mixed"),
}
RATIOS = (  # (above, below, least that issue 3 asks for)
    ("adapterd mixed-16", "peft mixed-16", 4.0),
    ("adapterd mixed-16", "adapterd base", 0.5),
    ("adapterd base", "peft base", None),
    ("peft mixed-16", "peft base", None),
)

app = typer.Typer(add_completion=False)


class WrongTokens(Exception):
    """The contestants disagree, or the adapters change nothing: no speed would mean anything."""


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/. Figures by run, in order of the repeats."""

    machine: Machine
    job: dict[str, object]
    tokens_checked: int
    tokens_per_s: dict[str, list[float]]
    prefill_s: dict[str, list[float]]
    decode_ms_per_step: dict[str, list[float]]

    def ratio(self, above: str, below: str) -> Spread:
        return ratios(self.tokens_per_s[above], self.tokens_per_s[below])


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the random model and adapters are kept.")] = HERE
    / ".work",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option()] = "bfloat16",
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per sequence.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=8)] = 128,
    threads: Annotated[int, typer.Option(min=1, help="torch's, in every contestant.")] = 2,
    check: Annotated[bool, typer.Option(help="Compare tokens in float32 first.")] = True,
    results: Annotated[Path, typer.Option(help="Folder for mixed.json and mixed.md.")] = HERE
    / "results",
) -> None:
    """Measures W1: the base and sixteen adapters mixed, this project's engine and peft's."""
    from benchmarks import w1  # brings torch, which --help does not wait for

    console = Console()
    machine = describe()
    job = Job("adapterd", "base", str(work), dtype, prompt_tokens, new_tokens, threads)
    with console.status("making the model and its adapters, once"):
        w1.prepare(work, [Scenario("mixed")])
    with console.status("comparing tokens with peft's in float32"):
        checked = check_tokens(job) if check else 0
    measured: dict[str, list[Measurement]] = {name: [] for name in RUNS}
    with Progress(console=console) as progress:
        task = progress.add_task("measuring", total=repeats * len(RUNS))
        for name, one in _interleaved(job, repeats):
            measured[name].append(one)
            progress.console.print(f"{name}: {one.tokens_per_s:.1f} tok/s")
            progress.advance(task)
    result = _result(machine, job, checked, measured)
    console.print(_figures(result), _ratios(result))
    write(result, results)


def check_tokens(job: Job) -> int:
    """Compares the mixed batch's tokens with peft's, in float32; returns how many were compared.

    Raises WrongTokens if any differs, or if an adapter leaves the base's answer as it was.
    """
    short = dataclasses.replace(job, dtype="float32", new_tokens=CHECK_TOKENS)
    ours, peft, base = (
        in_own_process(dataclasses.replace(short, who=who, traffic=traffic)).tokens
        for who, traffic in (("adapterd", "mixed"), ("peft", "mixed"), ("adapterd", "base"))
    )
    wrong = [number for number, pair in enumerate(zip(ours, peft, strict=True)) if len({*pair}) > 1]
    if wrong:
        raise WrongTokens(
            f"sequences {wrong} differ from peft's: {ours[wrong[0]]}, {peft[wrong[0]]}"
        )
    idle = [
        number for number, pair in enumerate(zip(ours, base, strict=True)) if pair[0] == pair[1]
    ]
    if idle:
        raise WrongTokens(f"the adapters of sequences {idle} leave the base's tokens unchanged")
    return sum(map(len, ours))


def _interleaved(job: Job, repeats: int) -> Iterator[tuple[str, Measurement]]:
    """Every run once, then every run again; each in a process of its own."""
    for _ in range(repeats):
        for name, (who, traffic) in RUNS.items():
            yield name, in_own_process(dataclasses.replace(job, who=who, traffic=traffic))


def _result(
    machine: Machine, job: Job, checked: int, measured: dict[str, list[Measurement]]
) -> Result:
    shape = asdict(job)
    for private in ("work", "who", "traffic"):
        del shape[private]
    shape |= {"sequences": ADAPTERS, "adapters": ADAPTERS, "rank": RANK}
    return Result(
        machine=machine,
        job=shape,
        tokens_checked=checked,
        tokens_per_s={n: [m.tokens_per_s for m in ms] for n, ms in measured.items()},
        prefill_s={n: [m.prefill_s for m in ms] for n, ms in measured.items()},
        decode_ms_per_step={n: [m.decode_ms_per_step for m in ms] for n, ms in measured.items()},
    )


def _figures(result: Result) -> Table:
    table = Table("run", "tok/s", "prefill, s", "decode, ms/step")
    for row in figure_rows(result):
        table.add_row(*row)
    return table


def _ratios(result: Result) -> Table:
    table = Table("ratio of tok/s", "median (least-most)", "asked for")
    for row in ratio_rows(result):
        table.add_row(*row)
    return table


def figure_rows(result: Result) -> list[tuple[str, str, str, str]]:
    """One row per run: name, tok/s, prefill seconds, decode milliseconds per step."""
    return [
        (
            name,
            spread(result.tokens_per_s[name]).text(),
            spread(result.prefill_s[name]).text(2),
            spread(result.decode_ms_per_step[name]).text(),
        )
        for name in RUNS
    ]


def ratio_rows(result: Result) -> list[tuple[str, str, str]]:
    """One row per ratio of the two runs of the same repeat."""
    return [
        (f"{above} / {below}", result.ratio(above, below).text(2), f">= {least}" if least else "")
        for above, below, least in RATIOS
    ]


def write(result: Result, folder: Path) -> None:
    """Writes mixed.json (every repeat) and mixed.md (medians) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mixed.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "mixed.md").write_text(_markdown(result))


def _markdown(result: Result) -> str:
    job = result.job
    lines = [
        "# W1: one base, sixteen adapters, one batch",
        "",
        f"A random Llama of SmolLM2-135M's shape, {job['dtype']}; {job['sequences']} requests of "
        f"{job['prompt_tokens']} prompt and {job['new_tokens']} new tokens, greedy, submitted at "
        f"once; mixed: {job['adapters']} different rank-{job['rank']} adapters on every linear. "
        "tok/s is generated tokens over seconds from submission to the last token, in-process; "
        "prefill ends with the last request's first token. Medians of "
        f"{len(next(iter(result.tokens_per_s.values())))} interleaved repeats (least-most), each "
        "run in a process of its own after a warm-up; ratios are of runs of the same repeat. "
        f"{_checked(result)}",
        "",
        *table(("run", "tok/s", "prefill, s", "decode, ms/step"), figure_rows(result)),
        "",
        *table(("ratio of tok/s", "median (least-most)", "asked for"), ratio_rows(result)),
        "",
        f"Machine: {result.machine.text()}; {job['threads']} threads.",
        "",
        "Made by `python -m benchmarks mixed`.",
    ]
    return "\n".join(lines) + "\n"


def _checked(result: Result) -> str:
    if not result.tokens_checked:
        return "Tokens were not compared in this run."
    return (
        f"Before that, {result.tokens_checked} tokens of the mixed batch were compared in float32 "
        "and all equalled peft's."
    )


if __name__ == "__main__":
    app()
