"""What is compared: every method, LoRA at six ranks with and without trained embeddings, and the
yardstick, full fine-tuning.

Here: VARIANTS, Variant. Not here: data, running them.

Rates: multipliers of a job's own defaults. The embedded base is far narrower than those that the
defaults were fitted to, and a sweep of 100 steps on Banking77 (1, 2, 4, 8 and 16 times) found it to
want more: 8 times for full fine-tuning, twice for LoRA up to rank 32. A family shares its rate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RANKS = (4, 8, 16, 32, 64, 128)
SAME_RANK = 16
FULL = "full"


@dataclass(frozen=True, slots=True)
class Variant:
    """`peft` goes into a job as adapterd.peft, `rate` as learning_rate_multiplier."""

    name: str
    peft: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0


def _ranks(*, embeddings: bool) -> list[Variant]:
    more = {"modules_to_save": ["embed_tokens"]} if embeddings else {}
    suffix = " + embeddings" if embeddings else ""
    return [
        Variant(
            f"lora r={rank}{suffix}",
            {"method": "lora", "rank": rank, **more},
            rate=2.0 if rank <= 32 else 1.0,
        )
        for rank in RANKS
    ]


METHODS = {  # of rank 16, with their rates
    "rslora": 1.0, "dora": 2.0, "lora+": 2.0, "pissa": 1.0, "eva": 2.0, "lora-ga": 1.0,
    "adalora": 4.0, "bottleneck": 2.0,
}  # fmt: skip
SMALL = {"ia3": 4.0, "prompt-tuning": 1.0, "prefix-tuning": 1.0, "p-tuning": 1.0}  # without a rank

VARIANTS: tuple[Variant, ...] = (
    Variant(FULL, {"method": FULL}, rate=8.0),
    *_ranks(embeddings=False),
    *_ranks(embeddings=True),
    *(
        Variant(f"{one} r={SAME_RANK}", {"method": one, "rank": SAME_RANK}, rate)
        for one, rate in METHODS.items()
    ),
    *(Variant(one, {"method": one}, rate) for one, rate in SMALL.items()),
)
