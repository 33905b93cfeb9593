"""`python -m benchmarks finetune banking77`: methods side by side, and what came of each.

Jobs that have ended stay in the work folder, so a run that broke off goes on where it was.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.e2e_nlg.data import DataMissing
from benchmarks.finetune.answers import bleu
from benchmarks.finetune.data import Task, banking77, e2e_nlg
from benchmarks.finetune.jobs import Budget, run_all
from benchmarks.finetune.variants import FULL, VARIANTS
from benchmarks.machine import describe
from benchmarks.markdown import table
from training.jobs import JobRecord

HERE = Path(__file__).resolve().parents[1]
TASKS = {"banking77": banking77, "e2e-nlg": e2e_nlg}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One variant. `score`: accuracy, or BLEU."""

    name: str
    parameters: int
    score: float
    loss: float
    forgetting: float | None
    kl: float | None
    seconds: float


@app.command()
def main(
    task: Annotated[str, typer.Argument(help="banking77 or e2e-nlg.")],
    work: Annotated[Path, typer.Option(help="Where jobs are kept.")] = HERE / ".work",
    results: Annotated[Path, typer.Option(help="Where the table goes.")] = HERE / "results",
    only: Annotated[list[str] | None, typer.Option(help="Variants by name; all.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of each.")] = 32,
    answered: Annotated[int, typer.Option(min=0, help="Of the test set, at most.")] = 10_000,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at once.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of each worker.")] = 1,
) -> None:
    """Trains every variant for as many epochs on the same rows, and writes their table."""
    if task not in TASKS:
        raise typer.BadParameter(f"{task}: {' or '.join(TASKS)} is wanted")
    try:
        data = TASKS[task]()
    except DataMissing as missing:
        raise SystemExit(f"skipped: {missing}") from None
    variants = [one for one in VARIANTS if not only or one.name in only]
    asked = answered if not data.facts else 0
    budget = Budget(epochs, batch_size, asked, workers, threads)
    folder = work / f"finetune-{data.name}"
    machine = describe()
    jobs = run_all(data, variants, budget, folder)
    rows, base = _rows(data, jobs, folder)
    told = {
        "task": data.name,
        "budget": asdict(budget),
        "machine": asdict(machine),
        "base": base,
        "rows": [asdict(row) for row in rows],
        "failed": {name: job.error for name, job in jobs.items() if job.status != "succeeded"},
    }
    results.mkdir(parents=True, exist_ok=True)
    name = f"finetune-{data.name}"
    (results / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    (results / f"{name}.md").write_text("\n".join(_page(data, told, rows, machine.text())) + "\n")
    print(f"{name}.md is written to {results}")


def _rows(
    data: Task, jobs: Mapping[str, JobRecord], folder: Path
) -> tuple[list[Row], dict[str, float]]:
    """Each variant's, and the base's score and loss."""
    rows: list[Row] = []
    base: dict[str, float] = {}
    for name, job in jobs.items():
        if job.status != "succeeded":
            continue
        assert job.result is not None
        report = job.result["report"]
        new = report["scores"]["new"]
        score = bleu(data, folder, job) if data.facts else new["exact_match"]
        rows.append(
            Row(
                name,
                report["trained_parameters"],
                score,
                new["eval_loss"],
                report["forgetting"],
                new["kl_from_base"],
                report["seconds"],
            )
        )
        if not base:
            plain = report["scores"]["base"]
            score = bleu(data, folder, None) if data.facts else plain["exact_match"]
            base = {"score": score, "loss": plain["eval_loss"]}
    return rows, base


def _page(data: Task, told: Mapping[str, Any], rows: list[Row], machine: str) -> list[str]:
    budget, base = told["budget"], told["base"]
    what = "BLEU" if data.facts else "accuracy"
    full = next((row.score for row in rows if row.name == FULL), None)
    best = max((row for row in rows if row.name != FULL), key=lambda row: row.score, default=None)
    lines = [
        f"# {data.name}: does a low-rank update suffice?",
        "",
        f"The embedded base (2.6 million parameters), {budget['epochs']} epochs in batches of "
        f"{budget['batch_size']}, rates as in variants.py; {what} and loss on the test split, "
        "which no choice was made by. Forgetting: growth of the loss on text of the base; KL: "
        "from the base, on the test split; both in nats a token.",
        "",
        *table(
            ["", "trained parameters", what, f"of full's {what}", "loss", "forgetting", "KL", "s"],
            [
                ["base", "0", _shown(base["score"]), "", f"{base['loss']:.3f}", "0", "0", ""],
                *(
                    [
                        row.name,
                        f"{row.parameters:,}",
                        _shown(row.score),
                        "" if not full else f"{row.score / full:.2f}",
                        f"{row.loss:.3f}",
                        _shown(row.forgetting),
                        _shown(row.kl),
                        f"{row.seconds:.0f}",
                    ]
                    for row in rows
                ),
            ],
        ),
        "",
    ]
    if full and best is not None:
        lines += [f"Best of the adapters: {best.name}, {best.score / full:.2f} of full's.", ""]
    for name, why in told["failed"].items():
        lines += [f"{name} failed: {why}", ""]
    return [*lines, f"Machine: {machine}."]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
