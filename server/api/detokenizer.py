"""From tokens to text, piece by piece: whole characters only, and never a part of a stop string.

Here: Detokenizer, StopMatcher, each for one sequence. Not here: what the pieces become.
"""

from collections.abc import Callable, Sequence

CONTEXT_TOKENS = (
    5  # of the prompt, decoded along: some decoders strip a leading space or join bytes
)
MAX_PENDING = 32  # tokens held for a character to complete; a character takes 4 bytes at most
REPLACEMENT = "\ufffd"  # what decoders put for bytes that are no UTF-8, yet or ever


class Detokenizer:
    """Text of a growing sequence. The pieces concatenated are the whole text.

    Decodes a short window twice, without and with the new tokens, and yields the difference, so
    a step costs the same at any length. Source: prefix/read offsets, as in Hugging Face TGI.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._window)  # tokens of the window that are out as text already

    def push(self, token_id: int) -> str:
        """The text that this token completes; "" if a character is still incomplete."""
        self._window.append(token_id)
        text = self._decode(self._window)
        pending = len(self._window) - self._read
        if text.endswith(REPLACEMENT) and pending < MAX_PENDING:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What is left at the end; an incomplete character comes out as U+FFFD."""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        new = self._after(self._decode(self._window[: self._read]), text)
        if new:
            self._window = self._window[self._read :]
            self._read = len(self._window)
        return new

    def _after(self, before: str, text: str) -> str:
        if text.startswith(before):
            return text[len(before) :]
        if before.endswith(REPLACEMENT):  # the prompt ended inside a character, now complete
            return text[len(before.rstrip(REPLACEMENT)) :]
        # A byte-fallback decoder spoils a whole run of bytes for one bad one: keep what is out.
        return self._decode(self._window[self._read :])


class StopMatcher:
    """Passes text through until a stop string completes, holding back what may become one.

    Which one counts does not depend on how the text was cut into pieces: the first to complete,
    and of those that complete together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.matched: str | None = None  # the stop string that ended the text
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show, and whether a stop string ended it."""
        if not self._stops:
            return text, False
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, start = min(ends)
            self._held, self.matched = "", text[start:end]
            return text[:start], True
        held = self._held_length(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back, once the sequence has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
