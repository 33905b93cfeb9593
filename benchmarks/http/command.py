"""`python -m benchmarks http`: starts everything, runs the scenarios, writes the results."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.http import report
from benchmarks.http.bench import started
from benchmarks.http.in_process import Setup
from benchmarks.http.load import ADAPTERS, Shape
from benchmarks.http.report import Result
from benchmarks.http.scenarios import (
    P50,
    Beside,
    Ceiling,
    LongPrompt,
    Plan,
    Rate,
    Scenarios,
    Streams,
    percentile,
)
from benchmarks.http.served_base import vocab_of, with_tokenizer
from benchmarks.machine import describe
from benchmarks.workload import Scenario, name_of

HERE = Path(__file__).parent.parent
CEILINGS = 2  # times that it is measured
SHORT = Plan(
    ceiling_requests=32,
    shares=(0.4, 0.8),
    seconds=15.0,
    passes=1,
    streams=64,
    beside_requests=32,
    beside_repeats=2,
    long_repeats=2,
)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the random model and adapters are kept.")] = HERE
    / ".work",
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option()] = "bfloat16",
    threads: Annotated[int, typer.Option(min=1, help="torch's, in both engines.")] = 2,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Generated per request.")] = 32,
    seconds: Annotated[float | None, typer.Option(help="Of arrivals, per rate and pass.")] = None,
    kv_cache_mib: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 1024,
    short: Annotated[bool, typer.Option(help="Two rates, fewer repeats: some 4 minutes.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for http.json, .md and .svg.")] = HERE
    / "results",
) -> None:
    """Measures the server over HTTP: latency at rising rates, what HTTP costs, long prompts.

    Takes about a quarter of an hour.
    """
    from benchmarks import w1  # brings torch, which --help does not wait for

    console = Console()
    machine = describe()
    plan = SHORT if short else Plan()
    plan = replace(plan, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    plan = plan if seconds is None else replace(plan, seconds=seconds)
    with console.status("making the model and its adapters, once"):
        w1.prepare(work, [Scenario("mixed", adapters=ADAPTERS)])
        base = with_tokenizer(work / "base", work / "served")
    names = tuple(map(name_of, range(ADAPTERS)))
    setup = Setup(
        base=str(base),
        adapters={name: str(work / "adapters" / name) for name in names},
        dtype=dtype,
        threads=threads,
        kv_cache_bytes=kv_cache_mib << 20,
    )
    shape = Shape(names, vocab_of(base), prompt_tokens, new_tokens)
    with console.status("starting a server and an engine beside it"), started(setup) as bench:
        outcome = measure(Scenarios(bench, shape, plan), console)
    result = Result(machine, dtype, threads, len(names), plan, *outcome)
    for head, rows in (
        (report.RATES_HEAD, report.rate_rows(result)),
        (report.ASKED_HEAD, report.asked_rows(result)),
        (report.SHARES_HEAD, report.share_rows(result)),
    ):
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    report.write(result, results)


def measure(
    scenarios: Scenarios, console: Console
) -> tuple[list[Ceiling], list[Rate], Beside, Streams, LongPrompt]:
    """Everything, once all adapters are resident. Raises RequestsFailed."""
    scenarios.warm_up()
    with console.status("with and without HTTP"):
        beside = scenarios.beside()
    console.print(f"tok/s over HTTP / without: {beside.ratio().text(3)}")
    with console.status("a long prompt among streams"):
        long_prompt = scenarios.long_prompt()
    console.print(f"inter-token p99 with it / without: {long_prompt.ratio().text(2)}")
    with console.status("the ceiling"):
        ceiling = [scenarios.ceiling() for _ in range(CEILINGS)]
    per_s = report.middle_ceiling(ceiling)
    console.print(f"ceiling: {per_s:.2f} requests/s")
    rates: dict[float, Rate] = {}
    with console.status("open loop"):
        for rate, one in scenarios.open_loop(per_s):
            rates[rate.share] = rate
            p50 = 1e3 * percentile(one.ttft_s, P50)
            console.print(f"{rate.share:g} of it: TTFT p50 {p50:.0f} ms, p99 / p50 {one.tail:.1f}")
    with console.status("many streams at once"):
        streams = scenarios.streams()
    console.print(f"{streams.complete} of {streams.asked} streams complete")
    return ceiling, list(rates.values()), beside, streams, long_prompt


if __name__ == "__main__":
    app()
