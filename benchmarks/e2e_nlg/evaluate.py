"""`python -m benchmarks.e2e_nlg.evaluate`: the trained adapter over HTTP, beside peft offline.

Its requests go out in mixed traffic: the base is asked the same, other adapters are asked in
between, all at once and in random order. Every answer is compared with what transformers + peft
give for that request alone; then adapter and base are scored.
"""

import json
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console

from benchmarks.e2e_nlg.bleu import Score, score
from benchmarks.e2e_nlg.data import DataMissing, Facts, data_folder, sample_of_test_set
from benchmarks.e2e_nlg.offline import Offline, Reply
from benchmarks.e2e_nlg.serving import Ask, ask_all
from benchmarks.e2e_nlg.train import ADAPTER, DEMO_BASE
from benchmarks.machine import Machine, describe
from benchmarks.own_server import base_name, own_server, push

NAME = "e2e-nlg"
BASE = "base"  # what the base's answers are filed under, whatever the server calls it
RESULTS = Path(__file__).resolve().parents[1] / "results"
EXAMPLES = 2  # answers of ours that are shown in the results

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked, and of whom."""

    base: Path
    adapter: Path
    others: Mapping[str, Path]  # adapters asked in between, by name
    rows: int = 200
    max_tokens: int = 96
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of one adapter's (or the base's) answers were peft's to the letter."""

    asked: int
    equal: int
    first_difference: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What is written to results/."""

    machine: Machine
    rows: int
    references: int
    max_tokens: int
    agreement: dict[str, Agreement]  # by adapter's name, the base's under "base"
    bleu: dict[str, Score]
    seconds: float  # from the first request to the last answer
    examples: tuple[str, ...]

    @property
    def exact(self) -> bool:
        return all(one.equal == one.asked for one in self.agreement.values())


@app.command()
def main(
    base: Annotated[Path, typer.Option(help="Folder of the base model.")] = DEMO_BASE,
    adapter: Annotated[Path, typer.Option(help="PEFT folder, from .train.")] = ADAPTER,
    others: Annotated[
        Path | None, typer.Option(help="Folder of other PEFT folders for this base.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="URL of a server of this base in float32; else starts one.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1)] = 200,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    results: Annotated[Path, typer.Option()] = RESULTS,
) -> None:
    """Serves, asks, compares, scores, and writes e2e_nlg.json and e2e_nlg.md."""
    console = Console()
    try:
        folder = data_folder()
    except DataMissing as error:
        console.print(f"skipped: {error}")
        return
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # peft's, about transformers
    beside = others or base.parent / "adapters"
    found = sorted(path.parent for path in beside.glob("*/adapter_config.json"))
    plan = Plan(base, adapter, {path.name: path for path in found}, rows=rows, threads=threads)
    report = evaluate(plan, sample_of_test_set(folder, rows, seed=plan.seed), server)
    write(report, results)
    console.print(_markdown(report))
    if not report.exact:
        raise typer.Exit(1)


def evaluate(plan: Plan, facts: Sequence[Facts], server: str | None = None) -> Report:
    """Asks `server`, or one of its own, and compares. Raises ServerNotReady."""
    machine = describe()
    asked = _traffic(plan, facts)
    with ExitStack() as stack:
        options = ("--dtype", "float32", "--max-resident-adapters", "3")
        options += ("--threads", str(plan.threads))
        url = server or stack.enter_context(own_server(plan.base, *options)).url
        for name, folder in {NAME: plan.adapter, **plan.others}.items():
            push(url, name, folder)
        served_base = base_name(url)
        asks = [Ask(served_base if n == BASE else n, mr, plan.max_tokens) for n, mr in asked]
        started = time.perf_counter()
        served = dict(zip(asked, ask_all(url, asks), strict=True))
        seconds = time.perf_counter() - started
    folders = {NAME: plan.adapter, BASE: None, **plan.others}
    agreement = {
        name: _compare(
            Offline(plan.base, path), plan, {k: v for k, v in served.items() if k[0] == name}
        )
        for name, path in folders.items()
    }
    return Report(
        machine=machine,
        rows=len(facts),
        references=sum(len(one.references) for one in facts),
        max_tokens=plan.max_tokens,
        agreement=agreement,
        bleu={n: score([served[n, one.mr].text for one in facts], facts) for n in (NAME, BASE)},
        seconds=seconds,
        examples=tuple(served[NAME, one.mr].text for one in facts[:EXAMPLES]),
    )


def _traffic(plan: Plan, facts: Sequence[Facts]) -> list[tuple[str, str]]:
    """(whom, mr) of every request, shuffled: adapter and base are asked everything, the others
    share one more round among them."""
    asked = [(name, one.mr) for one in facts for name in (NAME, BASE)]
    names = list(plan.others)
    asked += [(names[i % len(names)], one.mr) for i, one in enumerate(facts) if names]
    random.Random(plan.seed).shuffle(asked)
    return asked


def _compare(offline: Offline, plan: Plan, served: Mapping[tuple[str, str], Reply]) -> Agreement:
    """Asks `offline` what was asked of the server, one request at a time."""
    equal, difference = 0, None
    for (_, mr), reply in served.items():
        wanted = offline.reply(mr, plan.max_tokens)
        equal += reply == wanted
        if reply != wanted and difference is None:
            difference = f"{reply} instead of {wanted}"
    return Agreement(len(served), equal, difference)


def write(report: Report, folder: Path) -> None:
    """Writes e2e_nlg.json and e2e_nlg.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "e2e_nlg.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / "e2e_nlg.md").write_text(_markdown(report))


def _markdown(report: Report) -> str:
    machine = report.machine
    rows = [
        f"| {name} | {one.asked} | {one.equal} | "
        f"{report.bleu[name].bleu if name in report.bleu else ''} |"
        for name, one in report.agreement.items()
    ]
    return (
        "\n".join(
            [
                "# E2E NLG: a LoRA trained with peft, served in mixed traffic",
                "",
                f"{report.rows} meaning representations of the test set, drawn by seed, with "
                f"{report.references} references; greedy, float32, at most {report.max_tokens} "
                "tokens; all requests shuffled together, 32 open at a time, over HTTP. An answer "
                "counts as equal if its text and its number of tokens are those of transformers + "
                "peft for that request alone.",
                "",
                "| asked of | requests | equal to peft | BLEU |",
                "| --- | --- | --- | --- |",
                *rows,
                "",
                f"BLEU: sacrebleu, {report.bleu[NAME].signature}. All requests together took "
                f"{report.seconds:.0f} s on {machine.cpu}, {machine.cores} cores; torch "
                f"{machine.packages['torch']}, peft {machine.packages['peft']}.",
                "",
                "The adapter writes, for example:",
                "",
                *(f"- {text}" for text in report.examples),
                "",
                "Made by `python -m benchmarks.e2e_nlg.train`, then `python -m "
                "benchmarks.e2e_nlg.evaluate`.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    app()
