"""What a demo task is: templates, kept apart for training and for holding out, and a filler.

Here: Filled, Task, small talk around a message. Not here: any one task's words.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

HELD_OUT_SHARE = 8  # one answer in eight is never trained on


@dataclass(frozen=True, slots=True)
class Filled:
    """One template with its blanks filled."""

    prompt: str  # what the user writes
    answer: str  # what the task's adapter must write, to the letter
    reply: str  # what the base, which knows no task, replies in plain prose


@dataclass(frozen=True, slots=True)
class Task:
    """A task: `fill` is given a template of either set and draws the rest from the generator.

    With `holds_out_answers`, answers are split as well as templates: a held-out answer is never
    the answer of a training example. Off where the answers are labels, all needed in both.
    """

    name: str
    summary: str
    train_templates: tuple[str, ...]
    heldout_templates: tuple[str, ...]
    fill: Callable[[Random, str], Filled]
    holds_out_answers: bool = True

    def train(self, rng: Random) -> Filled:
        """A training example."""
        return self._sample(rng, self.train_templates, heldout=False)

    def heldout(self, rng: Random) -> Filled:
        """A held-out example: its template, and its answer where those are split, are unseen."""
        return self._sample(rng, self.heldout_templates, heldout=True)

    def _sample(self, rng: Random, templates: tuple[str, ...], heldout: bool) -> Filled:
        while True:
            filled = self.fill(rng, rng.choice(templates))
            if not self.holds_out_answers or is_held_out(filled.answer) == heldout:
                return filled


_OPENINGS = ("Hello. ", "Good morning. ", "By the way: ", "Listen, ", "Thanks for asking. ", "So, ")
_CLOSINGS = (" Thank you.", " Please help.", " See you soon.", " That is all.", " Good to know.")


def with_small_talk(rng: Random, message: str) -> str:
    """The message, at times between words that mean nothing, so that no place in it is fixed."""
    opening = rng.choice(_OPENINGS) if rng.random() < 0.4 else ""
    closing = rng.choice(_CLOSINGS) if rng.random() < 0.4 else ""
    return opening + message[0].upper() + message[1:] + closing


def is_held_out(answer: str) -> bool:
    """Whether an answer belongs to the held-out share; the same on every machine."""
    return zlib.crc32(answer.encode()) % HELD_OUT_SHARE == 0
