"""The results of `python -m benchmarks http`, and how they are written: http.json, .md and .svg.

Here: Result and its tables. Not here: measuring.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks import plot
from benchmarks.http.scenarios import (
    P50,
    P99,
    Beside,
    Ceiling,
    LongPrompt,
    Plan,
    Rate,
    Streams,
    percentile,
)
from benchmarks.machine import Machine
from benchmarks.markdown import table
from benchmarks.spread import Spread, spread
from benchmarks.workload import RANK

TAIL_SHARE = 0.8  # the rate that the issue names
RATES_HEAD = (
    "of the ceiling", "requests/s", "requests", "tok/s", "TTFT p50, ms", "TTFT p99, ms",
    "inter-token p50, ms", "inter-token p99, ms", "generator's lag p99, ms",
)  # fmt: skip
ASKED_HEAD = ("figure", "median (least-most)", "asked for")
SHARES_HEAD = ("beside the engine without HTTP", "median (least-most)")


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that is committed. Figures in order of the repeats."""

    machine: Machine
    dtype: str
    threads: int
    adapters: int
    plan: Plan
    ceiling: list[Ceiling]
    rates: list[Rate]
    beside: Beside
    streams: Streams
    long_prompt: LongPrompt

    def tail(self) -> Spread | None:
        """p99 over p50 of TTFT in each pass at TAIL_SHARE."""
        passes = next((rate.passes for rate in self.rates if rate.share == TAIL_SHARE), [])
        return spread([one.tail for one in passes]) if passes else None


def rate_rows(result: Result) -> list[tuple[str, ...]]:
    """One row per rate; percentiles over all of its passes together."""
    return [
        (
            f"{rate.share:g}",
            f"{rate.per_s:.2f}",
            str(sum(one.requests for one in rate.passes)),
            spread([one.tokens_per_s for one in rate.passes]).text(),
            _ms(percentile(rate.ttft_s, P50)),
            _ms(percentile(rate.ttft_s, P99)),
            _ms(rate.gap_p50_s),
            _ms(rate.gap_p99_s),
            _ms(max(one.lag_p99_s for one in rate.passes)),
        )
        for rate in result.rates
    ]


def asked_rows(result: Result) -> list[tuple[str, str, str]]:
    """What the issue asks for, one row each."""
    tail, streams = result.tail(), result.streams
    return [
        (
            f"TTFT p99 / p50 at {TAIL_SHARE:g} of the ceiling",
            tail.text(2) if tail is not None else "not measured",
            "<= 3",
        ),
        ("tok/s over HTTP / without HTTP", result.beside.ratio().text(3), ">= 0.95"),
        (
            f"{streams.asked} streams at once: complete, of the right length",
            f"{streams.complete} of {streams.asked}",
            str(streams.asked),
        ),
        (
            f"inter-token p99 of {result.plan.running} streams while a prompt of "
            f"{result.plan.long_prompt} tokens is read / without it",
            result.long_prompt.ratio().text(2),
            "<= 2",
        ),
    ]


def share_rows(result: Result) -> list[tuple[str, str]]:
    """Where the time went."""
    beside = result.beside
    shares = [asdict(one) for one in beside.shares]

    def percent(name: str) -> str:
        return _text([100 * one[name] for one in shares])

    return [
        ("tok/s over HTTP", _text(beside.http)),
        ("tok/s without HTTP", _text(beside.engine)),
        ("API process: CPU seconds per second of the engine's steps, %", percent("api_of_step")),
        ("API process: CPU, µs per token", _text(beside.api_us_per_token)),
        ("engine: time outside its steps, %", percent("outside_steps")),
        ("load generator: CPU of one core, %", percent("generator_cpu")),
    ]


def write(result: Result, folder: Path) -> None:
    """Writes http.json (every repeat), http.md and http.svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "http.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (folder / "http.md").write_text(markdown(result))
    (folder / "http.svg").write_text(picture(result))


def picture(result: Result) -> str:
    """Bars by rate; their lines go from the least pass to the most."""
    by_name = {f"{rate.share:g} of the ceiling": rate.passes for rate in result.rates}
    groups = {
        "TTFT p50, ms": lambda one: percentile(one.ttft_s, P50),
        "TTFT p99, ms": lambda one: percentile(one.ttft_s, P99),
        "inter-token p50, ms": lambda one: one.gap_p50_s,
        "inter-token p99, ms": lambda one: one.gap_p99_s,
    }
    return plot.bars(
        "open loop over HTTP: what a client waits for",
        {
            group: {name: [1e3 * of(one) for one in passes] for name, passes in by_name.items()}
            for group, of in groups.items()
        },
    )


def markdown(result: Result) -> str:
    plan, long = result.plan, result.long_prompt
    ceiling = spread([one.requests_per_s for one in result.ceiling])
    lines = [
        "# Over HTTP",
        "",
        f"A random Llama of SmolLM2-135M's shape, {result.dtype}, behind `adapterd serve` on "
        f"loopback; streamed /v1/completions of {plan.prompt_tokens} prompt and "
        f"{plan.new_tokens} new tokens, greedy, for {result.adapters} different rank-{RANK} "
        "adapters in turn, each on a connection of its own. The load comes from one process on "
        "the same machine, which only writes requests and keeps bytes while a load is on. Times "
        "are the client's; TTFT counts from when a request was due. Every request of every load "
        "got exactly its tokens.",
        "",
        f"The ceiling: {ceiling.text(2)} requests/s in a closed loop of {plan.saturating} streams. "
        f"Then an open loop, Poisson arrivals for {plan.seconds:g} s at shares of it, "
        f"{plan.passes} passes over all rates:",
        "",
        *table(RATES_HEAD, rate_rows(result)),
        "",
        "![latency by rate](http.svg)",
        "",
        *table(ASKED_HEAD, asked_rows(result)),
        "",
        f"With and without HTTP: the same {plan.beside_requests} requests, {plan.beside} open at "
        f"once, to the server and to an engine in another process, in turn, {plan.beside_repeats} "
        "times; over HTTP the load generator's own CPU is part of what is lost. The long prompt "
        f"comes once each of the streams has had {plan.long_after} tokens, and gaps count that "
        "overlap the time until its first token; without it, gaps of the same streams in a stretch "
        f"as long, {plan.long_repeats} pairs. It had its own first token after "
        f"{spread(long.ttft_s).text(2)} s. The {result.streams.asked} streams were opened in one "
        f"moment and took {result.streams.seconds:.1f} s.",
        "",
        *table(SHARES_HEAD, share_rows(result)),
        "",
        f"Machine: {result.machine.text()}; {result.threads} threads.",
        "",
        "Made by `python -m benchmarks http`.",
    ]
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"


def _text(values: Sequence[float]) -> str:
    return spread(values).text()


def middle_ceiling(ceilings: Sequence[Ceiling]) -> float:
    """Requests per second that shares are taken of."""
    return median(one.requests_per_s for one in ceilings)
