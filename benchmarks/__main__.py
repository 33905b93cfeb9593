"""`python -m benchmarks`: what `make bench` runs."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import floor, mixed, peers
from benchmarks.floor import Shape, decode_cost, prefill_cost
from benchmarks.gpu import decode as gpu
from benchmarks.http import command as http

LATE = {
    "speculative": "Measures decoding with guesses from the text itself, and without.",
    "fleet": "Measures a server with thousands of adapters.",
    "profile": "Takes a decode step apart: what each part takes, and would at least.",
    "advisor": "Checks the advisor's verdicts by long runs, on three data sets made to differ.",
    "finetune": "Trains by every PEFT method and rank, and in full, and compares what came of it.",
    "worker": "Trains by the worker and by hand, and serves beside a worker that trains.",
    "tune": "Measures what a search of hyperparameters finds, killing it on the way.",
    "eviction": "Plays policies of eviction against each other, by simulation.",
}

MODULES = {
    "finetune": "finetune.command",
    "worker": "worker.command",
}  # where its name does not say it

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
app.command("mixed")(mixed.main)
app.command("peers")(peers.main)
app.command("http")(http.main)
app.command("gpu")(gpu.main)


@app.command("floor")
def show_floor(
    work: Annotated[Path, typer.Option(help="Where the model is kept.")] = mixed.HERE / ".work",
    threads: Annotated[int, typer.Option(min=1, help="torch's.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per request.")] = 64,
) -> None:
    """Measures the machine's floor, and says what each scenario costs at least on it."""
    from benchmarks import w1  # brings torch, which --help does not wait for

    w1.prepare(work, [])
    shape, found = Shape.of(work / "base"), floor.in_own_process(threads)
    print(
        f"reads {found.read_gb_per_s:.1f} GB/s, matmul {found.bf16_gflop_per_s:.0f} GFLOP/s in "
        f"bfloat16 and {found.float32_gflop_per_s:.0f} in float32"
    )
    table = Table("scenario", "MB/step", "GFLOP/step", "least ms/step", "least prefill, s")
    for name, scenario in peers.SCENARIOS.items():
        step = decode_cost(shape, scenario, scenario.prompt_tokens + new_tokens // 2)
        table.add_row(
            name,
            f"{step.bytes / 1e6:.0f}",
            f"{step.flops / 1e9:.2f}",
            f"{1e3 * step.seconds(found):.1f}",
            f"{prefill_cost(shape, scenario).seconds(found):.2f}",
        )
    Console().print(table)


def _passed_on(name: str) -> Callable[[typer.Context], None]:
    """Runs the benchmark's own app, which brings torch, only when it is asked for."""

    def run(context: typer.Context) -> None:
        module = importlib.import_module(f"benchmarks.{MODULES.get(name, name)}")
        module.app(args=context.args, prog_name=f"python -m benchmarks {name}")

    return run


for _name, _about in LATE.items():
    app.command(
        _name,
        help=_about,
        add_help_option=False,  # its own app has it
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_passed_on(_name))


@app.command("all")
def everything() -> None:
    """`mixed`, `http`, then `peers`, with their defaults."""
    mixed.app(args=[], standalone_mode=False)
    http.app(args=[], standalone_mode=False)
    peers.app(args=[], standalone_mode=False)


if __name__ == "__main__":
    app()
