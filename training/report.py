"""What a job came to, for people and programs: JSON, a page with its curves, the curves alone.

Here: report_files. Not here: scores, verdicts.
"""

import json
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from jinja2 import Environment

ROWS = (
    ("held-out loss, nats a token", "eval_loss"),
    ("perplexity", "perplexity"),
    ("exact match", "exact_match"),
    ("F1 of words", "f1"),
    ("loss on general text", "general_loss"),
    ("KL from the base", "kl_from_base"),
)
CLASS_ROWS = (
    ("held-out loss, nats a text", "eval_loss"),
    ("accuracy", "exact_match"),
    ("F1, mean over classes", "f1"),
)

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .9rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
svg { max-width: 100%; height: auto }
</style>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{% for reason in reasons %}<p>Gate: {{ reason }}</p>
{% endfor %}
<table><tr><th></th>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for label, values in rows %}
<tr><td>{{ label }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{{ svg | safe }}
<h2>Plan</h2>
<table>{% for key, value in plan %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
</html>
""")


def report_files(report: Mapping[str, Any]) -> dict[str, bytes]:
    """File names' endings and contents: report.json, report.html, curves.svg."""
    svg = _curves(report["curves"])
    page = _page(report, svg)
    return {
        "report.json": json.dumps(report, indent=2).encode(),
        "report.html": page.encode(),
        "curves.svg": svg.encode(),
    }


def _page(report: Mapping[str, Any], svg: str) -> str:
    scores = {name: one for name, one in report["scores"].items() if one is not None}
    plan = {**report["plan"]["adapter"], **report["plan"]}
    plan.pop("adapter", None)
    kinds = ROWS if plan["task"] == "generation" else CLASS_ROWS
    gate = report["gate"] or {"reasons": []}
    return _PAGE.render(
        title=f"Fine-tuning job {report['job']}",
        summary=(
            f"{report['trained_parameters']:,} of {report['total_parameters']:,} parameters "
            f"trained on {report['trained_tokens']:,} tokens in {report['seconds']:.0f} s."
        ),
        reasons=gate["reasons"],
        columns=list(scores),
        rows=[
            (label, [_number(one[key]) for one in scores.values()])
            for label, key in kinds
            if any(one[key] is not None for one in scores.values())
        ],
        svg=svg[svg.index("<svg") :],  # without the XML declaration
        plan=sorted((key, _said(value)) for key, value in plan.items()),
    )


def _said(value: object) -> object:
    """Of a part of the plan: what it says, in a line."""
    if not isinstance(value, Mapping):
        return value
    return ", ".join(f"{key} {one}" for key, one in value.items() if one is not None)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Losses by step, as an SVG."""
    from matplotlib.figure import Figure  # takes a second, and most jobs need it once

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            steps, losses = zip(*points, strict=True)
            label = "training" if name == "train" else "held out"
            axes.plot(
                steps, losses, label=label, marker="o" if name == "eval" else "", markersize=4
            )
    axes.set(xlabel="step", ylabel="loss, nats")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
