"""`python -m benchmarks eviction`: who should leave a full tier of adapters, by simulation.

Draws of adapters go through the server's own SlotTable, HostCache and policies, without tensors:
a draw leases a slot while the next ones run, an adapter that is in no slot comes from the host
cache, and what is not there from disk. Nothing is timed; loading times are made up from sizes.
"""

import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from benchmarks.machine import Machine, describe
from benchmarks.markdown import table
from server.adapters.eviction import EvictionName, policy_named
from server.adapters.host_cache import HostCache
from server.adapters.slots import SlotLease, SlotTable
from server.kernels.backend import GRANULE

HERE = Path(__file__).parent
POLICIES: tuple[EvictionName, ...] = get_args(EvictionName)
RANKS = (4, 8, 16, 32, 64, 128)
RANK_SHARES = (15, 25, 30, 15, 10, 5)  # of a hundred adapters
BYTES_PER_RANK = 1 << 20  # all linears of a base of a billion parameters or two, in bfloat16
OPEN_S, BYTES_PER_S = 0.005, 5e8  # what a read takes at least, and then
SCATTER = 0.3  # of the logarithm of loading times, which are measured and vary
DRIFT_EVERY = 500  # draws
WHAT = {
    "zipf": "Zipf(1.0): the k-th most popular adapter is asked for 1/k as often as the first",
    "drift": f"the same, but every {DRIFT_EVERY} draws each adapter becomes one place more "
    "popular, and the most popular one the least",
    "round robin": "twice as many adapters as slots, one after the other",
}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the host cache needs to know of one."""

    digest: str
    bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is of everything."""

    adapters: int
    slots: int
    host_bytes: int
    running: int  # draws whose leases are held at once
    draws: int  # counted; a fifth as many go before
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the draws that are counted."""

    traffic: str
    policy: str
    slot_hits: float  # of all draws
    memory_hits: float  # of all draws: in a slot or the host cache
    slot_bytes: int  # copied to slots
    disk_bytes: int  # read
    disk_s: float  # spent reading


@dataclass(frozen=True, slots=True)
class Result:
    """What is written to results/."""

    machine: Machine
    shape: Shape
    outcomes: tuple[Outcome, ...]


@app.command()
def main(
    adapters: Annotated[int, typer.Option(min=2)] = 10_000,
    slots: Annotated[int, typer.Option(min=2)] = 64,
    host_gib: Annotated[float, typer.Option(min=0.01, help="Of the host cache.")] = 8,
    running: Annotated[int, typer.Option(min=1, help="Draws that hold a slot at once.")] = 16,
    draws: Annotated[int, typer.Option(min=1)] = 100_000,
    seed: int = 0,
    results: Annotated[Path, typer.Option(help="Folder for eviction.json and .md.")] = HERE
    / "results",
) -> None:
    """Plays three kinds of traffic under each policy. Two minutes."""
    machine = describe()
    if running >= slots:
        raise typer.BadParameter(
            f"{running} is not less than the {slots} slots", param_hint="running"
        )
    shape = Shape(adapters, slots, int(host_gib * 2**30), running, draws, seed)
    outcomes = []
    for traffic in TRAFFIC:
        for policy in POLICIES:
            outcomes.append(outcome := play(traffic, policy, shape))
            Console().print(
                f"{traffic}, {policy}: {100 * outcome.slot_hits:.1f} % in a slot, "
                f"{outcome.disk_bytes / 2**30:.1f} GiB read"
            )
    result = Result(machine, shape, tuple(outcomes))
    results.mkdir(parents=True, exist_ok=True)
    (results / "eviction.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (results / "eviction.md").write_text(markdown(result))


def play(traffic: str, policy: EvictionName, shape: Shape) -> Outcome:
    """One kind of traffic under one policy, the same draws for each policy."""
    catalog = make_adapters(shape)
    drawn = TRAFFIC[traffic](shape)
    tiers = Tiers(policy, shape)
    for number in islice(drawn, shape.draws // 5):
        tiers.ask(catalog[number])
    tiers.forget_counts()
    for number in islice(drawn, shape.draws):
        tiers.ask(catalog[number])
    tiers.check()
    return Outcome(
        traffic,
        policy,
        slot_hits=tiers.slot_hits / shape.draws,
        memory_hits=(tiers.slot_hits + tiers.host_hits) / shape.draws,
        slot_bytes=tiers.slot_bytes,
        disk_bytes=tiers.disk_bytes,
        disk_s=tiers.disk_s,
    )


class Tiers:
    """Slots over a host cache, as Residency has them, and what passes between."""

    def __init__(self, policy: EvictionName, shape: Shape) -> None:
        self._slots = SlotTable(shape.slots, GRANULE * shape.slots, policy_named(policy))
        self._host: HostCache[Adapter] = HostCache(shape.host_bytes, policy_named(policy))
        self._running: deque[SlotLease] = deque()
        self._places = shape.running
        self.forget_counts()

    def forget_counts(self) -> None:
        self.slot_hits = self.host_hits = self.slot_bytes = self.disk_bytes = 0
        self.disk_s = 0.0

    def ask(self, adapter: Adapter) -> None:
        """One request, which runs until as many as there are places have come after it."""
        if len(self._running) == self._places:
            self._slots.release(self._running.popleft())
        if self._slots.holds(adapter.digest):
            self.slot_hits += 1
        else:
            self._bring(adapter)
        self._running.append(self._slots.lease(adapter.digest))

    def check(self) -> None:
        self._slots.check()
        self._host.check()

    def _bring(self, adapter: Adapter) -> None:
        if self._host.holds(adapter.digest):
            self.host_hits += 1
        else:
            self.disk_bytes += adapter.bytes
            self.disk_s += adapter.load_s
            self._host.put(adapter)
        place = self._slots.assign(adapter.digest, GRANULE, load_s=adapter.load_s)
        assert place is not None, "fewer run than there are slots"
        self._host.use(adapter.digest)
        self.slot_bytes += adapter.bytes


def make_adapters(shape: Shape) -> list[Adapter]:
    """Of mixed ranks; how popular one is has nothing to do with its size."""
    draw = random.Random(shape.seed)
    made = []
    for number, rank in enumerate(draw.choices(RANKS, RANK_SHARES, k=shape.adapters)):
        size = rank * BYTES_PER_RANK
        load_s = (OPEN_S + size / BYTES_PER_S) * draw.lognormvariate(0, SCATTER)
        made.append(Adapter(f"{number:064x}", size, load_s))
    return made


def zipf(shape: Shape) -> Iterator[int]:
    """Numbers of adapters, for ever; 0 is the most popular."""
    draw = random.Random(shape.seed + 1)
    weights = list(accumulate(1 / rank for rank in range(1, shape.adapters + 1)))
    while True:
        yield from draw.choices(range(shape.adapters), cum_weights=weights, k=1000)


def drift(shape: Shape) -> Iterator[int]:
    """Zipf's, with the order of adapters moving on."""
    for at, rank in enumerate(zipf(shape)):
        yield (rank + at // DRIFT_EVERY) % shape.adapters


def round_robin(shape: Shape) -> Iterator[int]:
    while True:
        yield from range(min(2 * shape.slots, shape.adapters))


TRAFFIC: dict[str, Callable[[Shape], Iterator[int]]] = {
    "zipf": zipf,
    "drift": drift,
    "round robin": round_robin,
}


def markdown(result: Result) -> str:
    shape = result.shape
    ranks = ", ".join(f"{s} % r {r}" for r, s in zip(RANKS, RANK_SHARES, strict=True))
    parts = [
        "# Who should leave a full tier of adapters",
        "",
        "A simulation with the server's own slots, host cache and policies, without tensors: "
        f"{shape.adapters:,} adapters ({ranks}; {BYTES_PER_RANK >> 20} MiB a rank), "
        f"{shape.slots} slots, {shape.host_bytes / 2**30:g} GiB of host cache, {shape.running} "
        f"requests running at once, {shape.draws:,} requests counted after {shape.draws // 5:,} "
        "that were not. An adapter takes one slot whatever its size, and its bytes in the host "
        f"cache; reading one takes {1e3 * OPEN_S:g} ms and {BYTES_PER_S / 1e6:g} MB/s, give or "
        "take a third.",
    ]
    head = ("policy", "in a slot", "in memory", "GiB to slots", "GiB from disk", "s reading")
    for traffic, what in WHAT.items():
        rows = [
            (
                one.policy,
                f"{100 * one.slot_hits:.1f} %",
                f"{100 * one.memory_hits:.1f} %",
                f"{one.slot_bytes / 2**30:,.1f}",
                f"{one.disk_bytes / 2**30:,.1f}",
                f"{one.disk_s:,.0f}",
            )
            for one in result.outcomes
            if one.traffic == traffic
        ]
        parts += ["", f"## {traffic.capitalize()}", "", f"{what.capitalize()}.", ""]
        parts += table(head, rows)
    parts += ["", f"Machine, which changes nothing here: {result.machine.text()}.", ""]
    return "\n".join([*parts, "Made by `python -m benchmarks eviction`.", ""])
