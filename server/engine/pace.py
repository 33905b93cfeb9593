"""What a step costs, learned from the steps themselves, and what of a prompt fits beside decodes.

Here: StepPace. Not here: sequences, the budget of a step, clocks (it is told how long steps took).
"""

UNIT = 16  # tokens: so many weigh as much as the fixed part, when an error is shared out
RATE_LATE, RATE_EARLY = 0.1, 0.5  # a step's weight against those of its kind before it, at least
KNOWN_STEPS = 16  # of a kind; from then on one counts as twice as long as expected, at most
LEAST_ROOM = 16  # tokens: a prompt always goes on


class StepPace:
    """Seconds of a step ≈ fixed + decodes · per decode + prompt tokens · per prompt token.

    Each step corrects the three by its error, each in proportion to its part in that step, so a
    step without a prompt leaves what is known of prompts as it was. A step that was early weighs
    more: there are many reasons to be late, and one to be early. Always true: none is negative.
    Source: normalised least mean squares, Widrow and Hoff.
    """

    def __init__(self) -> None:
        self._parts = [0.0, 0.0, 0.0]  # seconds: fixed, per UNIT decodes, per UNIT prompt tokens
        self._seen = {False: 0, True: 0}  # steps without prompt tokens, and with some

    def observe(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step took so long."""
        scaled = (1.0, decodes / UNIT, prompt_tokens / UNIT)
        expected = self.expected(decodes, prompt_tokens)
        kind = prompt_tokens > 0
        if self._seen[kind] >= KNOWN_STEPS:
            seconds = min(seconds, 2 * expected)
        self._seen[kind] += 1
        least_rate = RATE_LATE if seconds > expected else RATE_EARLY
        rate = max(least_rate, 1 / self._seen[kind])
        pull = rate * (seconds - expected) / sum(one * one for one in scaled)
        parts = zip(self._parts, scaled, strict=True)
        self._parts = [max(0.0, part + pull * one) for part, one in parts]

    def expected(self, decodes: int, prompt_tokens: int) -> float:
        """Seconds that such a step takes, undisturbed."""
        fixed, per_decodes, per_prompt = self._parts
        return fixed + (per_decodes * decodes + per_prompt * prompt_tokens) / UNIT

    def room(self, decodes: int, slowdown: float, most: int) -> int:
        """Prompt tokens, `most` at most, with which a step takes at most `slowdown` times as long.

        As long as no step with, or none without a prompt has been seen: `most`.
        """
        fixed, per_decodes, per_prompt = self._parts
        if not all(self._seen.values()):
            return most
        spare = (slowdown - 1) * (fixed + per_decodes * decodes / UNIT)
        if spare * UNIT >= per_prompt * most:
            return most
        return min(most, max(LEAST_ROOM, int(UNIT * spare / per_prompt)))
