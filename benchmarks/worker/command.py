"""`python -m benchmarks worker`: the worker beside a script by hand, and beside a server."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import w1
from benchmarks.e2e_nlg.data import DataMissing
from benchmarks.finetune.data import banking77, plain
from benchmarks.fleet.traffic import Load
from benchmarks.http.served_base import with_tokenizer
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.spread import ratios, spread
from benchmarks.worker import alone, beside
from benchmarks.worker.alone import Pair

HERE = Path(__file__).resolve().parents[1]
app = typer.Typer(add_completion=False)


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where W1's base is kept.")] = HERE / ".work",
    results: Annotated[Path, typer.Option(help="Where the page goes.")] = HERE / "results",
    repeats: Annotated[int, typer.Option(min=1, help="Of each pair.")] = 3,
    steps: Annotated[int, typer.Option(min=10, help="Of each run alone.")] = 400,
    seconds: Annotated[float, typer.Option(min=1, help="Of each throughput.")] = 30.0,
    threads: Annotated[int, typer.Option(min=1, help="torch's, of all but the worker beside.")] = 2,
) -> None:
    """Trains on Banking77 by the worker and by hand; then serves W1's base, with and without."""
    try:
        data = banking77().train
    except DataMissing as missing:
        raise SystemExit(f"skipped: {missing}") from None
    machine = describe()
    pairs = [alone.measure(data, steps=steps, threads=threads) for _ in range(repeats)]
    w1.prepare(work, [])
    base = with_tokenizer(work / "base", work / "served")
    load = Load(clients=16, seconds=seconds, prompt_tokens=128, new_tokens=64, vocabulary=1000)
    with tempfile.TemporaryDirectory() as folder:
        served = beside.measure(
            base, plain(data), Path(folder), load, repeats=repeats, threads=threads
        )
    told, lines = _page(pairs, served, machine, steps)
    results.mkdir(parents=True, exist_ok=True)
    (results / "worker.json").write_text(json.dumps(told, indent=1) + "\n")
    (results / "worker.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _page(
    pairs: Sequence[Pair], served: Sequence[tuple[float, float]], machine: Machine, steps: int
) -> tuple[dict[str, Any], list[str]]:
    """The figures as JSON, and as Markdown's lines."""
    overhead = ratios([one.worker_s for one in pairs], [one.by_hand_s for one in pairs])
    kept = ratios([with_it for _, with_it in served], [without for without, _ in served])
    told = {
        "machine": asdict(machine),
        "steps": steps,
        "alone": [asdict(one) for one in pairs],
        "worker_over_by_hand": asdict(overhead),
        "served": served,
        "kept": asdict(kept),
    }
    lines = [
        "# The worker: what it costs",
        "",
        f"{steps} steps of 16 examples of Banking77 on the embedded base, LoRA of rank 16, as "
        "processes from start to end: the worker's keeps checkpoints, scores and publishes.",
        "",
        *table(
            ["", "s"],
            [
                ["the trl script by hand", spread([one.by_hand_s for one in pairs]).text()],
                ["`adapterd worker --until-empty`", spread([one.worker_s for one in pairs]).text()],
                ["worker / by hand", overhead.text(3)],
            ],
        ),
        "",
        f"Their losses differ by {max(one.difference for one in pairs):.2g} at most at any step; "
        f"the last is {pairs[0].last_loss:.4f}.",
        "",
        "16 clients of a server of W1's base, 128 tokens in and 64 out, while a worker trains the "
        "same base with its default niceness and threads:",
        "",
        *table(
            ["", "tokens/s"],
            [
                ["alone", spread([without for without, _ in served]).text()],
                ["beside the worker", spread([with_it for _, with_it in served]).text()],
                ["kept", kept.text(3)],
            ],
        ),
        "",
        f"Machine: {machine.text()}.",
    ]
    return told, lines
