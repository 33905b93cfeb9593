"""A finished job's report as text: scores side by side, what was trained, what the gate said.

Here: score_table, report_lines, reference_of. Not here: where a report comes from, its pictures.
"""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from server.cli_terminal import span_text

Report = dict[str, Any]

SCORES = (  # key, what a person calls it, how it is written
    ("eval_loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
    ("exact_match", "exact match", "{:.1%}"),
    ("f1", "F1", "{:.1%}"),
    ("general_loss", "loss on general text", "{:.4f}"),
    ("kl_from_base", "KL from the base", "{:.4f}"),
    ("examples", "examples", "{:,}"),
    ("tokens", "tokens", "{:,}"),
)


def score_table(report: Report) -> Table:
    """A row for each score that was taken, a column for each model that it was taken of."""
    models = [key for key in ("base", "current", "new") if report["scores"].get(key)]
    table = Table("on held-out examples")
    for model in models:
        table.add_column(model, justify="right")
    for key, title, form in SCORES:
        values = [report["scores"][model].get(key) for model in models]
        if any(value is not None for value in values):
            table.add_row(title, *("" if value is None else form.format(value) for value in values))
    return table


def report_lines(report: Report) -> Iterator[str]:
    """What the table has no place for."""
    adapter = report["adapter"]
    if adapter is None:
        yield f"{report['job']} made an adapter that was not published"
    else:
        yield (
            f"{report['job']} made {adapter['name']} version {adapter['version']}, "
            f"{adapter['digest'][:12]}"
        )
    share = report["trained_parameters"] / max(1, report["total_parameters"])
    yield (
        f"trained {report['trained_parameters']:,} parameters ({share:.2%} of all) on "
        f"{report['trained_tokens']:,} tokens in {span_text(report['seconds'])}"
    )
    if report["forgetting"] is not None:
        yield f"forgetting: {report['forgetting']:+.4f} nats a token on general text"
    if (gate := report["gate"]) is not None:
        why = f": {'; '.join(gate['reasons'])}" if gate["reasons"] else ""
        yield f"gate {'passed' if gate['passed'] else 'not passed'}{why}"


def reference_of(report: Report) -> str | None:
    """How requests name what was made: its name, unless that still means another version."""
    adapter, gate = report["adapter"], report["gate"]
    if adapter is None:
        return None
    moved = gate is None or gate["passed"]
    return adapter["name"] if moved else f"{adapter['name']}@{adapter['version']}"
