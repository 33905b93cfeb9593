"""Workload W1 and its variants: who answers what, read from files and drawn from seeds.

Here: plain data and the standard library only, for it also runs in the environments of peers that
have neither torch nor peft. The files are made by w1.py.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Traffic = Literal[
    "base", "single", "mixed", "ranks", "low-rank", "high-rank", "one-high-rank", "zipf"
]

RANK = 16
RANKS = (8, 16, 64)  # of the traffic "ranks", in turn
HIGHEST_RANK = 128  # of the one in "one-high-rank"; the others are as in "low-rank"
ADAPTERS = 16


@dataclass(frozen=True, slots=True)
class Scenario:
    """W1, with one thing or two changed."""

    traffic: Traffic
    sequences: int = 16
    adapters: int = ADAPTERS  # different ones that there are; Zipf's draw may leave some out
    prompt_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Workload:
    """The files; and of each sequence the name of its adapter (None: the base) and its prompt."""

    base: Path
    adapters: dict[str, Path]  # the different ones, in order of their first sequence
    names: tuple[str | None, ...]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def max_rank(self) -> int:
        """The largest rank among the adapters; RANK when there are none."""
        configs = [folder / "adapter_config.json" for folder in self.adapters.values()]
        return max((json.loads(config.read_text())["r"] for config in configs), default=RANK)


def read(work: Path, scenario: Scenario) -> Workload:
    """Prompts are the same for every traffic of the same size. Makes no file."""
    base = work / "base"
    vocab = json.loads((base / "config.json").read_text())["vocab_size"]
    draw = random.Random(0)
    names = adapter_names(scenario)
    return Workload(
        base,
        {name: work / "adapters" / name for name in dict.fromkeys(names) if name is not None},
        names,
        tuple(
            tuple(draw.randrange(2, vocab) for _ in range(scenario.prompt_tokens))
            for _ in range(scenario.sequences)
        ),
    )


def adapter_names(scenario: Scenario) -> tuple[str | None, ...]:
    """Of each sequence; None is the base."""
    sequences, adapters = range(scenario.sequences), scenario.adapters
    match scenario.traffic:
        case "base":
            return (None,) * len(sequences)
        case "single":
            return (name_of(0),) * len(sequences)
        case "mixed":
            return tuple(name_of(number % adapters) for number in sequences)
        case "ranks":
            return tuple(
                name_of(number % adapters, RANKS[number % len(RANKS)]) for number in sequences
            )
        case "low-rank":
            return tuple(name_of(number % adapters, min(RANKS)) for number in sequences)
        case "high-rank":
            return tuple(name_of(number % adapters, max(RANKS)) for number in sequences)
        case "one-high-rank":
            ranks = [min(RANKS)] * adapters
            ranks[adapters // 2] = HIGHEST_RANK
            names = [name_of(number, rank) for number, rank in enumerate(ranks)]
            return tuple(names[number % adapters] for number in sequences)
        case "zipf":
            weights = [1 / (place + 1) for place in range(adapters)]
            drawn = random.Random(0).choices(range(adapters), weights, k=len(sequences))
            return tuple(map(name_of, drawn))


def name_of(number: int, rank: int = RANK) -> str:
    return f"a{number:02}" if rank == RANK else f"a{number:02}-rank{rank}"


def number_and_rank(name: str) -> tuple[int, int]:
    """name_of's inverse."""
    number, _, rank = name[1:].partition("-rank")
    return int(number), int(rank or RANK)
