"""`adapterd advise`: how to adapt the base to a file of examples.

Here: what the command takes and prints. Not here: the advice (server/advise.py, training/advisor).
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from server.cli_settings import takes_settings
from server.cli_terminal import print_table
from server.config import load_settings


def add_to(app: typer.Typer) -> None:
    """Registers the command."""
    app.command()(
        takes_settings("model", "served_model_name", "device", "threads", "config")(advise)
    )


def advise(
    flags: dict[str, str],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help="Examples, as for a fine-tuning job.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
    probe_steps: Annotated[
        int, typer.Option("--probe-steps", min=4, max=5000, help="Steps of each short run.")
    ] = 120,
    full: Annotated[
        bool,
        typer.Option(
            "--full/--no-full", help="Whether full fine-tuning is tried, where memory allows."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and every probe.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page to write (.html), or JSON (.json)."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report as JSON.")
    ] = False,
) -> None:
    """Say which method, rank, targets and rate suit a file of examples, or that none does.

    Short runs of equal budget on the base, here and now; no server is asked:

        adapterd advise examples.jsonl --output report.html
    """
    settings = load_settings(flags)
    from server.advise import files, run

    report = run(settings, data, options={"probe_steps": probe_steps, "full": full}, seed=seed)
    if output is not None:
        ending = "report.json" if output.suffix == ".json" else "report.html"
        output.write_bytes(files(report)[ending])
    if as_json:
        print(json.dumps(report, indent=2))
        return
    print_advice(report)
    if output is not None:
        print(f"{output} is written")


def print_advice(report: dict[str, Any]) -> None:
    """The verdict, and what it rests on."""
    table = Table("probe", "held-out loss", "exact match", "trained", "s/step")
    chosen = (report["recommendation"] or {}).get("probe")
    for one in report["probes"]:
        match = one["exact_match"]
        table.add_row(
            one["name"],
            f"{one['loss']:.4f}" if one["loss"] is not None else "none",
            "" if match is None else f"{match:.0%}",
            f"{one['parameters']:,}",
            f"{one['seconds_per_step']:.3f}",
            style="bold" if one["name"] == chosen else "",
        )
    print_table(table)
    print(report["summary"])
    for one in report["findings"]:
        print(f"- {one['rule']}: {one['measured']}. {one['says']}.")
    if chosen is not None:
        print(f"A job: {json.dumps(report['recommendation']['job'])}")
        print(report["recommendation"]["note"])
