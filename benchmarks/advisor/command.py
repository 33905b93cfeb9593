"""`python -m benchmarks advisor`: the advisor on three data sets made to differ, then long runs.

Here: the command, what is written to results/. Not here: the data (data.py), the runs.
"""

import json
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import demo
from benchmarks.advisor.data import SETS, Set
from benchmarks.advisor.long_runs import FULL, NEW, PARTS, PLAIN, Long, best_of, long_runs
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from training.advisor.advice import advise
from training.advisor.request import Probing
from training.advisor.rules import FAR
from training.base import BaseFolder

HERE = Path(__file__).parent.parent
SEED = 0
VERDICTS = ("data", "what it is", "expected", "the advisor's verdict", "borne out by long runs")

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """One data set: what was advised, and what long runs say."""

    name: str
    about: str
    expected: str
    report: dict[str, Any]
    long: list[Long]


@dataclass(frozen=True, slots=True)
class Result:
    machine: Machine
    threads: int
    examples: int
    options: Probing
    long_steps: int
    sets: list[Checked]


class _Told:
    def __init__(self, name: str) -> None:
        self._name = name

    def on_step(self) -> None:
        """Nothing waits for a step."""

    def note(self, message: str) -> None:
        print(f"{self._name}: {message}", flush=True)


@app.command()
def main(
    results: Annotated[Path, typer.Option(help="Where the results are written.")] = HERE
    / "results",
    work: Annotated[Path, typer.Option(help="Where each set's result is kept: a run goes on.")] = (
        HERE / ".work" / "advisor"
    ),
    only: Annotated[str | None, typer.Option(help="One set's name; nothing is written.")] = None,
    examples: Annotated[int, typer.Option(min=64, help="Of each data set.")] = 1500,
    probe_steps: Annotated[int, typer.Option(min=4, help="Of each probe.")] = 40,
    times: Annotated[int, typer.Option(min=1, help="Steps of a long run over a probe's.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="torch's.")] = 1,
) -> None:
    """Advises on each data set, runs what checks it, and writes advisor.json and advisor.md."""
    torch.set_num_threads(threads)
    machine = describe()
    options = Probing(probe_steps=probe_steps, held_out=64, answered=16, batch_size=8)
    chosen = [one for one in SETS if only in (None, one.name)]
    sets = [_checked(one, examples, options, times, work) for one in chosen]
    if only is not None:
        return
    result = Result(machine, threads, examples, options, probe_steps * times, sets)
    write(result, results)
    Console().print((results / "advisor.md").read_text(), markup=False)


def _checked(one: Set, examples: int, options: Probing, times: int, work: Path) -> Checked:
    """From the work folder, as far as it is there."""
    base = BaseFolder("adapterd-demo", demo.base_path(), "cpu")
    content = one.jsonl(examples, seed=SEED)
    told, folder = _Told(one.name), work / f"{options.probe_steps}-{examples}"
    folder.mkdir(parents=True, exist_ok=True)
    advised = folder / f"{one.name}.report.json"
    if not advised.exists():
        report = advise(base, BytesIO(content), options, seed=SEED, listener=told)
        advised.write_text(json.dumps(report))
    report = json.loads(advised.read_text())
    more = options.model_copy(update={"probe_steps": options.probe_steps * times})
    runs = long_runs(base, content, report, more, told.note, folder / f"{one.name}-{times}")
    return Checked(one.name, one.about, one.expected, report, runs)


def write(result: Result, folder: Path) -> None:
    """Writes advisor.json (all of it) and advisor.md (the tables) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = asdict(replace(result, options=result.options.model_dump()))  # type: ignore[arg-type]
    (folder / "advisor.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / "advisor.md").write_text(_markdown(result))


def _markdown(result: Result) -> str:
    options = result.options
    lines = [
        "# The advisor's verdicts, checked by long runs",
        "",
        f"The embedded base, and {result.examples} examples of each of three data sets that a "
        f"script makes. Each probe made {options.probe_steps} steps of {options.batch_size} rows; "
        f"the long runs made {result.long_steps}, at the best probe's rate, then at a third of "
        f"it as long as that is better; the best counts. Losses are of {options.held_out} held-out "
        "examples, nats a learned token. The same seed makes the same rows, splits and batches.",
        "",
        f"A verdict is borne out if the long runs' best adapter is more than {FAR:.0%} above full "
        "fine-tuning where it was against PEFT, and is not where it was for it.",
        "",
        *table(VERDICTS, _verdicts(result)),
        "",
        *table(("gap", "probes", "long runs"), _gaps(result)),
        "",
        *table(("long run", "rate", "held-out loss", "exact match"), _long(result)),
    ]
    for one in result.sets:
        lines += ["", f"## {one.name}", "", one.report["summary"], ""]
        lines += table(("probe", "trained", "held-out loss", "s/step"), _probes(one))
        lines += [""]
        lines += table(
            ("rule", "measured", "holds if", "holds"),
            [
                (each["rule"], each["measured"], each["threshold"], "yes" if each["holds"] else "")
                for each in one.report["findings"]
            ],
        )
    lines += [
        "",
        f"Machine: {result.machine.text()}; {result.threads} threads.",
        "",
        "Made by `python -m benchmarks advisor`.",
    ]
    return "\n".join(lines) + "\n"


def _verdicts(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            one.name,
            one.about,
            one.expected,
            f"**{one.report['verdict']}**: {_job(one)}",
            _borne_out(one),
        )
        for one in result.sets
    ]


def _borne_out(one: Checked) -> str:
    adapters = [run.loss for run in one.long if run.kind != FULL]
    full = best_of(one.long, FULL)
    if full is None or not adapters:
        return "not run"
    gap = (min(adapters) - full.loss) / full.loss
    held = (gap > FAR) == (one.report["verdict"] == "full")
    return f"{'yes' if held else 'no'}: the best adapter is {gap:+.1%}"


def _job(one: Checked) -> str:
    recommended = one.report["recommendation"]
    return "nothing" if recommended is None else recommended["probe"]


def _gaps(result: Result) -> list[tuple[str, ...]]:
    """Relative, each kind's best above full fine-tuning's."""
    rows = []
    for one in result.sets:
        for kind in (PLAIN, NEW):
            long, full = best_of(one.long, kind), best_of(one.long, FULL)
            probes = [each for each in one.report["probes"] if each["part"] in PARTS[kind]]
            fulls = [each for each in one.report["probes"] if each["part"] == "full"]
            if long is None or full is None or not probes or not fulls:
                continue
            short = _above(_least(probes), _least(fulls))
            rows.append((f"{one.name}: {kind} above full", short, _above(long.loss, full.loss)))
        plain, new = best_of(one.long, PLAIN), best_of(one.long, NEW)
        probes = [
            _least([each for each in one.report["probes"] if each["part"] in PARTS[kind]])
            for kind in (PLAIN, NEW)
        ]
        if plain is not None and new is not None:
            name = f"{one.name}: {PLAIN} above {NEW}"
            rows.append((name, _above(*probes), _above(plain.loss, new.loss)))
    return rows


def _least(probes: list[dict[str, Any]]) -> float:
    return min(each["loss"] for each in probes)


def _above(loss: float, other: float) -> str:
    return f"{(loss - other) / other:+.1%}"


def _long(result: Result) -> list[tuple[str, ...]]:
    return [
        (
            f"{one.name}: {run.name}",
            f"{run.learning_rate:.2g}",
            f"{run.loss:.4f}",
            "" if run.exact_match is None else f"{run.exact_match:.0%}",
        )
        for one in result.sets
        for run in one.long
    ]


def _probes(one: Checked) -> list[tuple[str, ...]]:
    return [
        (
            each["name"],
            f"{each['parameters']:,}",
            f"{each['loss']:.4f}",
            f"{each['seconds_per_step']:.2f}",
        )
        for each in one.report["probes"]
    ]


if __name__ == "__main__":
    app()
