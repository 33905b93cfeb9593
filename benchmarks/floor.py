"""The machine's own floor, and the least that a step could cost on it.

Read bandwidth and matmul speed are measured with torch, with as many threads as contestants have;
matmul in bfloat16 and in float32, for some processors multiply float32 faster, and who computes may
convert. Bytes and flops are counted from the base's shape: every weight read once, adapters once
each, the KV cache once; nothing else. A step can be no faster than the slower of the two.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.workload import Scenario, adapter_names, number_and_rank

BUFFER_BYTES = 1 << 30  # far more than any cache
MATMUL_SIZE = 2048
TRIES = 7
NUMBER_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Floor:
    """Medians of TRIES."""

    read_gb_per_s: float
    bf16_gflop_per_s: float
    float32_gflop_per_s: float

    @property
    def gflop_per_s(self) -> float:
        """The faster of the two."""
        return max(self.bf16_gflop_per_s, self.float32_gflop_per_s)


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that must be read, and computed."""

    bytes: int
    flops: int

    def seconds(self, floor: Floor) -> float:
        """The least on such a machine: reading and computing at once."""
        return max(self.bytes / (floor.read_gb_per_s * 1e9), self.flops / (floor.gflop_per_s * 1e9))


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama with a tied head."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @classmethod
    def of(cls, base: Path) -> "Shape":
        config = json.loads((base / "config.json").read_text())
        return cls(
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["vocab_size"],
        )

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    def linears(self) -> Iterator[tuple[int, int]]:
        """(in, out) of each of a layer's projections, which are also what adapters target."""
        yield from ((self.hidden, self.hidden),) * 2  # q, o
        yield from ((self.hidden, self.kv_width),) * 2  # k, v
        yield from ((self.hidden, self.intermediate),) * 2  # gate, up
        yield self.intermediate, self.hidden  # down

    @property
    def linear_numbers(self) -> int:
        """In all layers."""
        return self.layers * sum(rows * columns for rows, columns in self.linears())

    @property
    def norm_numbers(self) -> int:
        return (2 * self.layers + 1) * self.hidden

    def adapter_numbers(self, rank: int) -> int:
        return self.layers * rank * sum(rows + columns for rows, columns in self.linears())


def decode_cost(shape: Shape, scenario: Scenario, context: int) -> Cost:
    """Of one token for each sequence, each with `context` tokens before and including it."""
    names, sequences = adapter_names(scenario), scenario.sequences
    ranks = {name: number_and_rank(name)[1] for name in names if name is not None}
    weights = shape.linear_numbers + shape.norm_numbers + shape.vocab * shape.hidden
    adapters = sum(map(shape.adapter_numbers, ranks.values()))
    cache = sequences * context * shape.layers * 2 * shape.kv_width
    dense = sequences * (shape.linear_numbers + shape.vocab * shape.hidden)
    low_rank = sum(shape.adapter_numbers(ranks[name]) for name in names if name is not None)
    attention = sequences * context * shape.layers * 2 * shape.hidden
    return Cost(NUMBER_BYTES * (weights + adapters + cache), 2 * (dense + low_rank + attention))


def prefill_cost(shape: Shape, scenario: Scenario) -> Cost:
    """Of every prompt, each ending with one token's logits; attention is causal."""
    names, sequences, length = adapter_names(scenario), scenario.sequences, scenario.prompt_tokens
    one = decode_cost(shape, scenario, context=0)
    low_rank = sum(
        shape.adapter_numbers(number_and_rank(name)[1]) for name in names if name is not None
    )
    dense = sequences * (length * shape.linear_numbers + shape.vocab * shape.hidden)
    pairs = length * (length + 1) // 2
    attention = sequences * pairs * shape.layers * 2 * shape.hidden
    return Cost(one.bytes, 2 * (dense + length * low_rank + attention))


def measure(threads: int) -> Floor:
    """Takes a second or two."""
    import torch  # not in every peer's environment, where the rest of this module may be read

    torch.set_num_threads(threads)
    buffer = torch.ones(BUFFER_BYTES // 4)
    left, right = (torch.randn(MATMUL_SIZE, MATMUL_SIZE) for _ in range(2))
    left16, right16 = left.bfloat16(), right.bfloat16()
    return Floor(
        read_gb_per_s=BUFFER_BYTES / _seconds(buffer.sum) / 1e9,
        bf16_gflop_per_s=2 * MATMUL_SIZE**3 / _seconds(lambda: left16 @ right16) / 1e9,
        float32_gflop_per_s=2 * MATMUL_SIZE**3 / _seconds(lambda: left @ right) / 1e9,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Median of TRIES, after one that does not count."""
    work()
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def in_own_process(threads: int) -> Floor:
    """As contestants are measured: nothing else of ours in memory."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.floor", str(threads)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    return Floor(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
