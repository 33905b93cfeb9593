"""What is compared: every method, LoRA at six ranks with and without trained embeddings, and the
yardstick, full fine-tuning.

Here: VARIANTS, Variant. Not here: data, running them.
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
        Variant(f"lora r={rank}{suffix}", {"method": "lora", "rank": rank, **more})
        for rank in RANKS
    ]


METHODS = ("rslora", "dora", "lora+", "pissa", "eva", "lora-ga", "adalora", "bottleneck")
SMALL = ("ia3", "prompt-tuning", "prefix-tuning", "p-tuning")  # which have no rank

VARIANTS: tuple[Variant, ...] = (
    Variant(FULL, {"method": FULL}),
    *_ranks(embeddings=False),
    *_ranks(embeddings=True),
    *(Variant(f"{one} r={SAME_RANK}", {"method": one, "rank": SAME_RANK}) for one in METHODS),
    *(Variant(one, {"method": one}) for one in SMALL),
)
