"""Guesses what a sequence says next from what it has said before, so that one step can check many
tokens where a plain decode makes one.

Here: PromptLookup, one per sequence. Not here: who may run how many guesses (the scheduler), and
whether they came true (the sampler's draws say so). Source: prompt lookup decoding, Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding; the n-gram speculator of vLLM.
"""

from array import array

LONGEST_MATCH = 4
SHORTEST_MATCH = 2
"""A single token recurs everywhere, and says little about what follows."""

MAX_REST = 16
"""Steps without a guess, at most, after guesses that were wrong or could not be made: text that
repeats nothing pays for one lookup, and hardly ever a wrong row, in so many steps."""

_ID_BYTES = array("I").itemsize


class PromptLookup:
    """What one sequence would repeat, and how far its guesses are to be trusted.

    Its drafts double in length while all of them come true, and shrink to what did when they do
    not; when none does, or nothing recurs, it rests for twice as many steps as the last time.
    """

    def __init__(self, most: int) -> None:
        """`most`: drafts per step, at least 1."""
        self._most = most
        self._length = 1
        self._rest = 0  # steps still to sit out
        self._last_rest = 0
        self._text = bytearray()  # the sequence's tokens, _ID_BYTES each: memory that rfind reads

    def propose(self, tokens: list[int], room: int) -> tuple[int, ...]:
        """At most `room` tokens that may follow `tokens`; () if there is nothing to go by.

        `tokens` begin with those of the call before: a sequence only grows.
        """
        if self._rest:
            self._rest -= 1
            return ()
        count = min(self._length, room)
        if count < 1:
            return ()
        end = self._latest_match(tokens)
        if end is None:
            self._sit_out()
            return ()
        # A match that overlaps the end is a loop: it is followed round and round.
        period = len(tokens) - end
        return tuple(tokens[end + at % period] for at in range(count))

    def learn(self, drafted: int, accepted: int) -> None:
        """That of so many drafts so many came true."""
        if not accepted:
            self._length = 1
            self._sit_out()
            return
        self._last_rest = 0
        grown = max(self._length, min(2 * drafted, self._most))  # there was no room for all of them
        self._length = grown if accepted == drafted else accepted

    def _sit_out(self) -> None:
        self._rest = self._last_rest = min(2 * self._last_rest + 1, MAX_REST)

    def _latest_match(self, tokens: list[int]) -> int | None:
        """Where the latest earlier occurrence of the longest end of `tokens` ends."""
        text = self._text
        text += array("I", tokens[len(text) // _ID_BYTES :]).tobytes()
        for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
            pattern = bytes(text[-size * _ID_BYTES :])
            before = len(text) - _ID_BYTES  # where an earlier occurrence ends at the latest
            at = text.rfind(pattern, 0, before)
            while at > 0 and at % _ID_BYTES:  # across two ids: none at all
                at = text.rfind(pattern, 0, at + len(pattern) - 1)
            if at >= 0:
                return at // _ID_BYTES + size
        return None
