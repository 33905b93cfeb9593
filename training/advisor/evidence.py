"""What was measured, as plain numbers: all that a verdict may depend on.

Here: Evidence and its parts. Not here: measuring, judging; no tensor.
"""

from dataclasses import dataclass
from typing import Literal

from training.spec import PeftMethod

Part = Literal["rate", "rank", "variant", "targets", "tokens", "embeddings", "prompt", "full"]
"""What a probe is made to find out."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer and the data. "General" is text drawn from the base itself."""

    tokens_per_word: float  # words: between white space
    tokens_per_character: float
    general_tokens_per_word: float
    general_tokens_per_character: float
    unknown_share: float  # of the data's tokens: the tokenizer's unknown token, 0 to 1
    byte_share: float  # tokens that are one byte of a character
    untrained_share: float | None  # tokens that the base was never trained on; None: not known
    untrained: tuple[int, ...]  # their ids, the most frequent first
    rare: tuple[int, ...]  # ids that the data have often and the general text hardly
    general_byte_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One short run; all of one advice have the same steps, batches and held-out rows."""

    name: str
    part: Part
    method: PeftMethod
    rank: int | None  # None: the method has none
    targets: tuple[str, ...]
    learning_rate: float
    multiplier: float  # of the method's own rate
    parameters: int  # trained
    loss: float  # held out, nats a learned token
    curve: tuple[tuple[int, float], ...]  # (step, held-out loss), the first at step 0
    exact_match: float | None
    general_loss: float | None  # on text of the base's own
    seconds_per_step: float
    activation_bytes: int  # that a step keeps for its backward pass


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Of full fine-tuning's weight changes, over the linear modules that LoRA would adapt."""

    rank90: int  # the median over modules of the rank that holds 90 % of a change's energy
    largest_rank90: int
    width: int  # the median over modules of the smaller side
    energy_at: tuple[tuple[int, float], ...]  # (rank, mean share of the energy that it holds)

    @property
    def share(self) -> float:
        """rank90 as a share of the width."""
        return self.rank90 / self.width


@dataclass(frozen=True, slots=True)
class Difference:
    """The groups' held-out losses under one model."""

    model: str
    scores: tuple[tuple[str, int, float, float | None], ...]
    """(group, rows, mean loss of a row, exact match), the worst first."""
    difference: float  # of the worst and the best group, nats
    p: float  # how often groups drawn at random differ as much


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the base, and of the device that it would be trained on."""

    base_bytes: int
    base_parameters: int
    free_bytes: int | None  # before any probe, the base loaded; None: not known


@dataclass(frozen=True, slots=True)
class Evidence:
    base_loss: float  # on the held-out rows
    general_loss: float | None  # the base's, on its own text
    exact_match: float | None  # the base's answers; None: answers are long, or none were asked
    vocabulary: Vocabulary
    probes: tuple[Probe, ...]
    spectrum: Spectrum | None  # None: full fine-tuning was not probed
    full_left_out: str | None  # why
    gap_error: float | None
    """The standard error of (best PEFT - full) over held-out rows, paired, nats a token."""
    groups: tuple[Difference, ...] = ()
    memory: Memory | None = None

    def best(self, *parts: Part) -> Probe | None:
        """The probe of these parts with the least loss; the first of equals."""
        found = [one for one in self.probes if one.part in parts]
        return min(found, key=lambda one: one.loss, default=None)
