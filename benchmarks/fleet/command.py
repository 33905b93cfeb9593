"""`python -m benchmarks fleet`: what thousands of adapters cost, on one server of this project.

The catalogue with and without them; throughput when requests draw from all of them by Zipf's law,
over so many slots, beside the same load over as many adapters as there are slots; sixteen adapters
in turn over half as many slots; and streams that run while a hundred adapters load.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import demo
from benchmarks import w1
from benchmarks.fleet.catalogue import Call, Standing, calls, standing
from benchmarks.fleet.cold import COLD, STREAMS, Cold, measure
from benchmarks.fleet.files import RANK, TARGETS, data_folder, name_of
from benchmarks.fleet.thrash import ADAPTERS, Contest, contests
from benchmarks.fleet.traffic import Load, throughput, zipf
from benchmarks.http.served_base import with_tokenizer
from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from benchmarks.own_server import own_server
from benchmarks.spread import Spread, ratios, spread

HERE = Path(__file__).parent.parent
BASE_NAME = "base"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/."""

    machine: Machine
    threads: int
    slots: int
    load: Load
    standing: list[Standing]
    adapters: int
    calls: list[Call]
    few: Spread  # tok/s over as many adapters as slots
    many: Spread  # over all
    ratio: Spread  # of the pairs
    thrash: Load
    enough: Spread  # tok/s, W1's sixteen adapters with a slot each
    contests: list[Contest]  # with half the slots
    cold: list[Cold]  # repeats, each on a server of its own


@app.command()
def main(
    work: Annotated[Path, typer.Option(help="Where the base and the adapters are kept.")] = HERE
    / ".work",
    adapters: Annotated[int, typer.Option(min=2, help="Registered; half a MB each.")] = 10_000,
    slots: Annotated[int, typer.Option(min=1, help="--max-resident-adapters.")] = 64,
    clients: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    thrash_clients: Annotated[int, typer.Option(min=1, help="The same, over half the slots.")] = 8,
    seconds: Annotated[float, typer.Option(help="Of load, per run.")] = 40.0,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    results: Annotated[Path, typer.Option(help="Folder for fleet.json and .md.")] = HERE
    / "results",
) -> None:
    """Measures a server with thousands of adapters. A quarter of an hour, more the first time."""
    machine = describe()
    w1.prepare(work, [])
    base = with_tokenizer(work / "base", work / "served")
    data = data_folder(work, adapters, BASE_NAME)
    common = (
        "--dtype", "bfloat16", "--threads", str(threads), "--served-model-name", BASE_NAME,
        "--max-resident-adapters", str(slots), "--max-rank", str(RANK),
    )  # fmt: skip
    there = ("--data-dir", str(data))
    load = Load(clients, seconds, prompt_tokens=64, new_tokens=32, vocabulary=49152)
    embedded, options = demo.base_path(), (*common[2:6], "--max-rank", str(RANK))
    found_standing = [
        standing("W1's", base, 0, *common),
        standing("W1's", base, adapters, *common, *there),
        standing("the embedded", embedded, 0, *options),
        standing("the embedded", embedded, adapters, *options, *there),
    ]
    with own_server(base, *common, *there) as server:
        timed = calls(server.url, adapters)
        few, many = _runs(server.url, load, slots, adapters, repeats)
    kept = common[:6]  # dtype, threads and the base's name
    thrash = Load(thrash_clients, seconds, prompt_tokens=64, new_tokens=32, vocabulary=49152)
    enough, found = contests(work, base, thrash, repeats, *kept)
    cold = [measure(work, base, *kept) for _ in range(repeats)]
    result = Result(
        machine, threads, slots, load, found_standing, adapters, timed,
        spread(few), spread(many), ratios(many, few), thrash, enough, found, cold,
    )  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    (results / "fleet.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (results / "fleet.md").write_text(markdown(result))
    Console().print(f"{adapters} over {slots}: {result.ratio.text(2)} of {slots} over {slots}")


def _runs(
    url: str, load: Load, slots: int, adapters: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Tokens per second over `slots` adapters and over all, in turns, after one turn unmeasured."""
    few: list[float] = []
    many: list[float] = []
    for repeat in range(repeats + 1):
        for rates, count in ((few, slots), (many, adapters)):
            numbers = zipf(count, seed=repeat)
            rates.append(throughput(url, load, lambda numbers=numbers: name_of(next(numbers))))
            Console().print(f"repeat {repeat}: {count} adapters, {rates[-1]:.1f} tok/s")
    return few[1:], many[1:]


def markdown(result: Result) -> str:
    load, adapters = result.load, f"{result.adapters:,}"
    parts = [
        f"# {adapters} adapters on one server",
        "",
        f"W1's base in bfloat16; adapters of rank {RANK} on {' and '.join(TARGETS)}, published "
        "into the store. Figures are medians of repeats (least-most); ratios are of runs of the "
        "same repeat.",
        "",
        "## Standing by",
        "",
        *table(
            ("base", "registered", "start to ready, s", "API process, MiB", "engine's, MiB"),
            [
                (
                    s.base,
                    f"{s.adapters:,}",
                    f"{s.start_s:.1f}",
                    f"{s.api_mib:.0f}",
                    f"{s.engine_mib:.0f}",
                )
                for s in result.standing
            ],
        ),
        "",
        f"## Catalogue calls with {adapters}",
        "",
        *table(
            ("call", "p50, ms", "p99, ms"),
            [(c.what, f"{c.p50_ms:.1f}", f"{c.p99_ms:.1f}") for c in result.calls],
        ),
        "",
        f"## Zipf(1.0) over {result.slots} slots",
        "",
        f"{load.clients} requests at once, each {load.prompt_tokens} tokens continued by "
        f"{load.new_tokens}, in a closed loop of {load.seconds:.0f} s.",
        "",
        *table(
            ("drawn from", "tok/s", "of the first"),
            [
                (f"{result.slots} adapters", result.few.text(), ""),
                (f"{adapters} adapters", result.many.text(), result.ratio.text(2)),
            ],
        ),
        "",
        *_thrash(result),
        *_cold(result.cold),
        "",
        f"Machine: {result.machine.text()}; {result.threads} threads.",
        "",
        "Made by `python -m benchmarks fleet`.",
    ]
    return "\n".join([*parts, ""])


def _thrash(result: Result) -> list[str]:
    return [
        f"## {ADAPTERS} adapters in turn over {ADAPTERS // 2} slots",
        "",
        f"W1's adapters (rank 16 on every linear), {result.thrash.clients} requests at once.",
        "",
        *table(
            ("slots", "eviction", "tok/s", "of the first"),
            [
                (str(ADAPTERS), "none", result.enough.text(), ""),
                *(
                    (str(ADAPTERS // 2), one.policy, one.rate.text(), one.ratio.text(2))
                    for one in result.contests
                ),
            ],
        ),
        "",
    ]


def _cold(runs: list[Cold]) -> list[str]:
    def of(field: str) -> list[float]:
        return [getattr(run, field) for run in runs]

    def row(name: str, which: str) -> tuple[str, str, str]:
        return name, *(spread(of(f"{which}_{p}_ms")).text() for p in ("p50", "p99"))

    def ratio(p: str) -> str:
        return ratios(of(f"loading_{p}_ms"), of(f"quiet_{p}_ms")).text(2)

    alone = {
        name: spread(of(f"{name}_ms")).text()
        for name in ("alone_first_token", "alone_load", "warm_first_token", "alone_step")
    }
    costs = spread([run.alone_first_token_ms - run.warm_first_token_ms for run in runs])
    allowed = spread([run.alone_load_ms + 2 * run.alone_step_ms for run in runs])
    return [
        f"## {min(run.loads for run in runs)} adapters load beside {STREAMS} streams",
        "",
        f"W1's adapters; {COLD} of them cold. Milliseconds between tokens of the streams.",
        "",
        *table(
            ("", "p50", "p99"),
            [
                row("quiet", "quiet"),
                row("while they load", "loading"),
                ("ratio", ratio("p50"), ratio("p99")),
            ],
        ),
        "",
        f"A cold request alone: {alone['alone_first_token']} ms to its first token, of which "
        f"{alone['alone_load']} ms loading the adapter. Once more, from its slot: "
        f"{alone['warm_first_token']} ms. A step takes {alone['alone_step']} ms. So being cold "
        f"costs {costs.text()} ms, where loading and two steps take {allowed.text()} ms.",
    ]
