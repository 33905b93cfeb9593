"""An advice as a page for people: the verdict first, then what it rests on, with its curves.

Here: page. Not here: verdicts. Everything that comes from data or names is escaped; the page
loads nothing from elsewhere.
"""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from jinja2 import Environment

HEADS = {
    "peft": "Use an adapter",
    "full": "PEFT is the wrong tool here",
    "none": "Train nothing yet",
    "unclear": "The probes do not decide it",
}

_PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } tr { border-bottom: 1px solid #ddd }
td, th { padding: .25rem .8rem; text-align: right; vertical-align: top }
td:first-child, th:first-child, .text td { text-align: left }
svg { max-width: 100%; height: auto } .chosen { font-weight: 600 } .no { color: #777 }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere }
</style>
<h1>{{ title }}</h1>
<p class="chosen">{{ summary }}</p>
{% if job %}<p>A job's body: <code>{{ job | tojson }}</code></p>
<p>{{ note }}{% if not served %}

What comes of it is a result file: this server cannot serve it.{% endif %}</p>
{% endif %}
<p>{{ facts }}</p>
<h2>Probes</h2>
<table><tr><th></th><th>held-out loss</th><th>exact match</th><th>general text</th>
<th>trained</th><th>rate</th><th>s/step</th><th>memory of a job</th><th>time of a job</th></tr>
{% for one in probes %}
<tr{% if one.chosen %} class="chosen"{% endif %}>
{% for cell in one.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{{ curves | safe }}
{% if spectrum %}<h2>What rank the full fine-tune's change has</h2>
<p>{{ told }}</p>
{{ spectrum | safe }}
{% endif %}
<h2>Rules</h2>
<table class="text"><tr><th>rule</th><th>measured</th><th>holds if</th><th></th><th>source</th></tr>
{% for one in findings %}
<tr{% if not one.holds %} class="no"{% endif %}><td>{{ one.rule }}</td><td>{{ one.measured }}</td>
<td>{{ one.threshold }}</td><td>{{ "holds" if one.holds else "does not hold" }}: {{ one.says }}</td>
<td>{{ one.source }}</td></tr>
{% endfor %}</table>
{% if tokens %}<h2>Tokens that the base was not trained on, or hardly uses</h2>
<p>{% for one in tokens %}<code>{{ one.token }}</code> {% endfor %}</p>
{% endif %}
{% for one in groups %}<h2>Groups under {{ one.model }}</h2>
<table><tr><th>group</th><th>rows</th><th>loss of a row</th><th>exact match</th></tr>
{% for name, rows, loss, match in one.scores %}
<tr><td>{{ name }}</td><td>{{ rows }}</td><td>{{ "%.4f" | format(loss) }}</td>
<td>{{ "–" if match is none else "%.0f %%" | format(100 * match) }}</td></tr>
{% endfor %}</table>
{% endfor %}
</html>
""")


def page(report: Mapping[str, Any]) -> str:
    """HTML of a report as advice.py makes it."""
    recommended = report["recommendation"] or {}
    data, budget, spectrum = report["data"], report["budget"], report["spectrum"]
    words = data["vocabulary"]
    return _PAGE.render(
        title=HEADS[report["verdict"]],
        summary=report["summary"],
        job=recommended.get("job"),
        note=recommended.get("note"),
        served=recommended.get("served", True),
        facts=(
            f"{data['rows']:,} rows of {data['tokens']:,} tokens on {report['base']}; "
            f"{data['probed_on']:,} probed on, {data['held_out']:,} held out. Each probe made "
            f"{budget['probe_steps']} steps of {budget['batch_size']} rows; all took "
            f"{report['seconds']:.0f} s. The base alone has a loss of {data['base_loss']:.4f}."
        ),
        probes=[_row(one, recommended.get("probe")) for one in report["probes"]],
        curves=_curves(report["probes"]),
        spectrum=None if spectrum is None else _energy(spectrum),
        told=None if spectrum is None else _told(spectrum),
        findings=report["findings"],
        tokens=[*words["untrained"], *words["rare"]][:64],
        groups=report["groups"],
    )


def _row(probe: Mapping[str, Any], chosen: str | None) -> dict[str, Any]:
    estimate, match = probe["estimate"], probe["exact_match"]
    return {
        "chosen": probe["name"] == chosen,
        "cells": [
            probe["name"],
            _number(probe["loss"]),
            "–" if match is None else f"{match:.0%}",
            _number(probe["general_loss"]),
            f"{probe['parameters']:,}",
            f"{probe['learning_rate']:.2g}",
            f"{probe['seconds_per_step']:.3g}",
            f"{estimate['bytes'] / 1e6:,.0f} MB",
            f"{estimate['seconds'] / 60:,.1f} min",
        ],
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _told(spectrum: Mapping[str, Any]) -> str:
    return (
        f"Rank {spectrum['rank90']} of {spectrum['width']} would have held 90 % of it (the median "
        f"over modules; {spectrum['largest_rank90']} at most)."
    )


def _curves(probes: Sequence[Mapping[str, Any]]) -> str:
    """Held-out losses by step; of each kind of probe the best one."""
    best: dict[str, Mapping[str, Any]] = {}
    for one in probes:
        kind = "rank" if one["part"] == "rate" else str(one["part"])
        if kind not in best or _order(one) < _order(best[kind]):
            best[kind] = one
    lines = [(one["name"], [(x, y) for x, y in one["curve"] if x]) for one in best.values()]
    return _plot(lines, "step", "held-out loss, nats a token", logarithmic=False)


def _order(probe: Mapping[str, Any]) -> float:
    return float("inf") if probe["loss"] is None else probe["loss"]


def _energy(spectrum: Mapping[str, Any]) -> str:
    lines = [("mean over modules", [(x, y) for x, y in spectrum["energy_at"]])]
    return _plot(lines, "rank", "share of the change that it holds", logarithmic=True)


def _plot(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], x: str, y: str, *, logarithmic: bool
) -> str:
    from matplotlib.figure import Figure  # takes a second, and most jobs need it once

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines:
        known = [(at, value) for at, value in points if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=_plain(name), marker="o", markersize=4)
    axes.set(xlabel=x, ylabel=y)
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]  # without the XML declaration


def _plain(name: str) -> str:
    """A dollar sign would begin a formula."""
    return name.replace("$", r"\$")
