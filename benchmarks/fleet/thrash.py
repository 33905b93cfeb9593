"""Sixteen adapters in turn over eight slots, beside sixteen slots: what swapping costs."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from benchmarks import w1
from benchmarks.fleet.traffic import Load, throughput
from benchmarks.own_server import own_server, push
from benchmarks.spread import Spread, ratios, spread
from benchmarks.workload import Scenario, adapter_names

ADAPTERS = 16
POLICIES = ("lru", "lfu", "cost")
EVERYBODY = Scenario("mixed", sequences=ADAPTERS, adapters=ADAPTERS)


@dataclass(frozen=True, slots=True)
class Contest:
    """One policy over half the slots."""

    policy: str
    rate: Spread  # tok/s
    ratio: Spread  # of the rate with a slot for each adapter


def contests(
    work: Path, base: Path, load: Load, repeats: int, *options: str
) -> tuple[Spread, list[Contest]]:
    """tok/s with a slot for each of W1's sixteen adapters; and of each policy with half of them.

    Every server stands by all the time; they are loaded in turns.
    """
    w1.prepare(work, [EVERYBODY])
    names = [name for name in adapter_names(EVERYBODY) if name is not None]
    kinds = [("enough", ADAPTERS, "lru"), *((p, ADAPTERS // 2, p) for p in POLICIES)]
    rates: dict[str, list[float]] = {kind: [] for kind, _, _ in kinds}
    with ExitStack() as stack:
        servers = {
            kind: stack.enter_context(
                own_server(
                    base, *options,
                    "--max-resident-adapters", str(slots), "--eviction", policy,
                )
            )
            for kind, slots, policy in kinds
        }  # fmt: skip
        for server in servers.values():
            for name in names:
                push(server.url, name, work / "adapters" / name)
        for repeat in range(repeats + 1):  # the first fills host caches
            for kind, server in servers.items():
                turns: Iterator[str] = cycle(names)
                rate = throughput(server.url, load, lambda turns=turns: next(turns))
                if repeat:
                    rates[kind].append(rate)
    enough = rates["enough"]
    found = [Contest(p, spread(rates[p]), ratios(rates[p], enough)) for p in POLICIES]
    return spread(enough), found
