"""Three data sets for the embedded base, made to differ in what they need.

Here: SETS, Set. Not here: running anything.

near: the base's own chats, with thanks at the end of each reply. new-tokens: times of day as three
signs that are tokens of the base and were in none of its text. far: the base's own stories and
facts in a cipher, a letter for a letter: the same structure, and next to no token where the base
has learnt it.
"""

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from demo.tasks import clock
from demo.text import chat, plain

Json = dict[str, Any]

SIGNS = "#$%&*+/;<=>@KLVXZ[]^_q{|}~"
"""Of the base's tokens, those that are one ASCII character and that its text lacks, but for two
(a backslash, which JSON doubles, and a backtick)."""

_HOURS, _HALVES, _MINUTES = SIGNS[:12], SIGNS[12:14], SIGNS[14:26]


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    about: str
    expected: str  # what the advisor should say, as it was put before anything ran
    lines: Callable[[Random], Iterator[Json]]

    def jsonl(self, count: int, *, seed: int) -> bytes:
        """So many examples, the same for a seed."""
        made = self.lines(Random(f"{self.name} {seed}"))
        return b"".join(json.dumps(next(made)).encode() + b"\n" for _ in range(count))


def _near(rng: Random) -> Iterator[Json]:
    while True:
        messages = [
            one | {"content": f"{one['content']} Thank you."} if one["role"] == "assistant" else one
            for one in chat(rng)
        ]
        yield {"messages": messages}


def _new_tokens(rng: Random) -> Iterator[Json]:
    while True:
        filled = clock.TASK.train(rng)
        hour, minute = map(int, filled.answer.split(":"))
        signs = _HOURS[hour % 12] + _HALVES[hour // 12] + _MINUTES[minute // 5]
        yield _asked(filled.prompt, signs)


def _asked(prompt: str, answer: str) -> Json:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def _cipher() -> dict[int, str]:
    """Small letters for small ones, capitals for capitals, digits for digits; none for itself."""
    table: dict[int, str] = {}
    for alphabet in (string.ascii_lowercase, string.ascii_uppercase, string.digits):
        turned = list(alphabet)
        rng = Random("cipher")
        while any(a == b for a, b in zip(alphabet, turned, strict=True)):
            rng.shuffle(turned)
        table |= {ord(a): b for a, b in zip(alphabet, turned, strict=True)}
    return table


def _far(rng: Random) -> Iterator[Json]:
    table = _cipher()
    while True:
        sentence = plain(rng).partition("\n")[0].partition(". ")[0]
        yield {"prompt": "", "completion": sentence.translate(table)}


SETS = (
    Set(
        "near",
        "the base's own chats, with the same two words of thanks at the end of each reply",
        "LoRA of a small rank; within 2 % of full fine-tuning",
        _near,
    ),
    Set(
        "new-tokens",
        "times of day in words, answered by three signs that the base was never trained on",
        "LoRA with trained tokens or embeddings; plain LoRA has a gap",
        _new_tokens,
    ),
    Set(
        "far",
        "the base's own plain text in a cipher, a letter for a letter",
        "PEFT underfits; full fine-tuning, with the measured gap",
        _far,
    ),
)
