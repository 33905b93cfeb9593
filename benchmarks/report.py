"""The results of `python -m benchmarks peers`: what is kept of each run, and how it is written.

Here: Cell, Check, Results, peers.json and peers.md. Not here: running anything.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import plot
from benchmarks.contestants.job import Measurement
from benchmarks.floor import Cost, Floor
from benchmarks.machine import Machine
from benchmarks.markdown import table
from benchmarks.spread import Spread, ratios, spread
from benchmarks.workload import Scenario

US = "adapterd"
RIGHT = 0.95  # share of all tokens; one near-tie in float32 changes the rest of its sequence


@dataclass(frozen=True, slots=True)
class Check:
    """A contestant's tokens in float32 beside peft's, before any speed is measured."""

    tokens: int
    equal: int
    sequences: int
    first_equal: int  # sequences whose first token is peft's

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> "Check":
        """A missing token is a wrong one. Raises ValueError for another number of sequences."""
        pairs = list(zip(tokens, wanted, strict=True))
        return cls(
            tokens=sum(map(len, wanted)),
            equal=sum(a == b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=False)),
            sequences=len(pairs),
            first_equal=sum(list(ours[:1]) == list(theirs[:1]) for ours, theirs in pairs),
        )

    @property
    def right(self) -> bool:
        """An adapter in another's place changes first tokens; rounding may change late ones."""
        return self.first_equal == self.sequences and self.equal >= RIGHT * self.tokens

    def text(self) -> str:
        if self.right:
            return f"{self.equal} of {self.tokens}"
        return f"wrong: {self.sequences - self.first_equal} of {self.sequences} requests"


@dataclass(slots=True)
class Cell:
    """One contestant in one scenario. With a reason, it has no speed."""

    check: Check | None = None
    reason: str | None = None
    tokens_per_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    decode_ms_per_step: list[float] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)  # of the first run, by sequence

    def add(self, one: Measurement) -> None:
        self.tokens_per_s.append(one.tokens_per_s)
        self.prefill_s.append(one.prefill_s)
        self.decode_ms_per_step.append(one.decode_ms_per_step)
        self.first_tokens = self.first_tokens or [tokens[0] for tokens in one.tokens]

    @property
    def measured(self) -> bool:
        return self.reason is None and bool(self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that is committed. Figures by repeat."""

    machine: Machine
    job: dict[str, object]
    versions: dict[str, dict[str, str]]  # of contestants that ran
    skipped: dict[str, str]  # contestants that did not, and why
    scenarios: dict[str, Scenario]
    decode_cost: dict[str, Cost]  # of a step in the middle of the answer
    prefill_cost: dict[str, Cost]
    floors: list[Floor]
    cells: dict[str, dict[str, Cell]]  # by scenario, by contestant

    def floor(self) -> Floor:
        return Floor(
            spread([floor.read_gb_per_s for floor in self.floors]).median,
            spread([floor.bf16_gflop_per_s for floor in self.floors]).median,
            spread([floor.float32_gflop_per_s for floor in self.floors]).median,
        )

    def ratio(self, scenario: str, above: str, below: str) -> Spread | None:
        """Of tok/s within repeats; None where either has none."""
        return _ratio([self.cells[scenario].get(who) for who in (above, below)])

    def beside_base(self, scenario: str, who: str) -> Spread | None:
        """tok/s over those of the same batch without adapters; None where either is not there."""
        plain = dataclasses.replace(
            self.scenarios[scenario], traffic="base", adapters=Scenario("base").adapters
        )
        base = next((name for name, one in self.scenarios.items() if one == plain), None)
        if base is None or base == scenario:
            return None
        return _ratio([self.cells[name].get(who) for name in (scenario, base)])


def _ratio(pair: Sequence[Cell | None]) -> Spread | None:
    measured = [cell.tokens_per_s for cell in pair if cell is not None and cell.measured]
    return ratios(*measured) if len(measured) == len(pair) else None


def write(results: Results, folder: Path) -> None:
    """Writes peers.json (every repeat), peers.md (medians) and peers.svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    (folder / "peers.md").write_text(markdown(results))
    bars = {
        scenario: {who: cell.tokens_per_s or cell.reason for who, cell in cells.items()}
        for scenario, cells in results.cells.items()
    }
    (folder / "peers.svg").write_text(plot.bars("generated tokens per second", bars))


def markdown(results: Results) -> str:
    job = results.job
    parts = [
        "# This project beside its peers",
        "",
        f"W1 and its variants: a random Llama of SmolLM2-135M's shape in {job['dtype']}, "
        f"{job['new_tokens']} new tokens for each request, greedy, submitted at once; adapters are "
        "on every linear, of rank 16 unless said. Generation is timed in-process, each run in a "
        "process of its own after a warm-up, one at a time, interleaved. tok/s is generated tokens "
        "over seconds from submission to the last token; prefill ends with the last request's "
        "first token. Figures are medians of repeats (least-most); ratios are of runs of the same "
        "repeat.",
        "",
        f"Before a contestant's speed counted in a scenario, its tokens for prompts of "
        f"{job['check_prompt_tokens']} tokens were compared in float32 with peft's: every "
        f"request's first token must be peft's, and {RIGHT:.0%} of all. The same comparison of the "
        "measured runs' first tokens, where rounding to bfloat16 decides near-ties, is the last "
        "column.",
        "",
        "llama.cpp applies one adapter to all of a batch, so requests of the same adapter are "
        "batched and these groups run one after another: its prefill is the sum of theirs, and a "
        "step one token of every request. OpenVINO's prefill is the longest time to a first token "
        "that it reports itself. vLLM is compiled, but for the comparison in float32.",
        "",
        *_who(results),
        "",
        "![tokens per second](peers.svg)",
        "",
        *_floor(results),
    ]
    for name in results.scenarios:
        parts += ["", f"## {name}", "", *scenario_table(results, name)]
    parts += ["", f"Machine: {results.machine.text()}; {job['threads']} threads.", ""]
    parts += ["Made by `python -m benchmarks peers`.", ""]
    return "\n".join(parts)


def _who(results: Results) -> list[str]:
    lines = [
        f"- {who}: " + ", ".join(f"{name} {number}" for name, number in found.items())
        for who, found in results.versions.items()
    ]
    return lines + [f"- {who}: not run, {reason}" for who, reason in results.skipped.items()]


def _floor(results: Results) -> list[str]:
    """The machine's, and what of it each scenario needs at least."""
    read = spread([floor.read_gb_per_s for floor in results.floors])
    bf16 = spread([floor.bf16_gflop_per_s for floor in results.floors])
    float32 = spread([floor.float32_gflop_per_s for floor in results.floors])
    floor = results.floor()
    rows = []
    for name, cost in results.decode_cost.items():
        prefill = results.prefill_cost[name]
        rows.append(
            (
                name,
                f"{cost.bytes / 1e6:.0f}",
                f"{cost.flops / 1e9:.2f}",
                f"{1e3 * cost.seconds(floor):.1f}",
                f"{prefill.flops / 1e9:.0f}",
                f"{prefill.seconds(floor):.2f}",
            )
        )
    head = (
        "scenario",
        "decode: MB/step",
        "GFLOP/step",
        "least ms/step",
        "prefill: GFLOP",
        "least s",
    )
    return [
        f"The machine's floor, measured between the repeats: reads {read.text()} GB/s, torch's "
        f"matmul {bf16.text()} GFLOP/s in bfloat16 and {float32.text()} in float32 (size 2,048). "
        "What a step needs at least (weights, adapters and KV cache read once in bfloat16), and "
        "how fast it could be at best by the faster of the two:",
        "",
        *table(head, rows),
    ]


def scenario_table(results: Results, name: str) -> list[str]:
    """One row per contestant."""
    rows = [scenario_row(results, name, who) for who in results.cells[name]]
    head = (
        "contestant", "float32 tokens as peft's", "tok/s", "prefill, s", "decode, ms/step",
        "times the least", "of its base's tok/s", f"{US} / it", "bfloat16 first tokens as peft's",
    )  # fmt: skip
    return table(head, rows)


def scenario_row(results: Results, name: str, who: str) -> tuple[str, ...]:
    cell = results.cells[name][who]
    check = cell.check.text() if cell.check else "not compared"
    if not cell.measured:
        return (who, check, cell.reason or "not measured", *("",) * 6)
    decode = spread(cell.decode_ms_per_step)
    least_ms = 1e3 * results.decode_cost[name].seconds(results.floor())
    ratio = results.ratio(name, US, who)
    beside_base = results.beside_base(name, who)
    return (
        who,
        check,
        spread(cell.tokens_per_s).text(),
        spread(cell.prefill_s).text(2),
        decode.text(),
        f"{decode.median / least_ms:.1f}",
        beside_base.text(2) if beside_base is not None else "",
        ratio.text(2) if ratio is not None and who != US else "",
        _agreement(cell, results.cells[name].get("peft")),
    )


def _agreement(cell: Cell, peft: Cell | None) -> str:
    if peft is None or not peft.measured:
        return ""
    pairs = zip(cell.first_tokens, peft.first_tokens, strict=True)
    return f"{sum(a == b for a, b in pairs)} of {len(cell.first_tokens)}"
