"""One sequence of a request on its way from token events to what a client may see of it.

Here: Choice, Delta, TokenLogprob. Not here: the engine, other sequences, any dialect's words.
"""

from dataclasses import dataclass
from typing import Literal

from adapters_store.errors import EngineUnavailable
from server.api.detokenizer import StopMatcher
from server.api.text import TextCodec, Token
from server.engine.messages import TokenEvent

LOWEST = -9999.0  # what OpenAI says for a logprob of minus infinity, which JSON cannot

Ending = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text, and what stood to choice in its place."""

    token: Token
    logprob: float
    top: tuple[tuple[Token, float], ...]  # best first
    offset: int  # of its text within the choice's, in characters


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to a choice. Concatenated, the texts are the answer."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Ending | None = None
    stop_string: str | None = None  # the one that ended it, if one did
    # At its end: what came and is no part of the text, a stop string's tokens or the one for "end".
    unshown: tuple[TokenLogprob, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.text and not self.logprobs and self.finish_reason is None


class Choice:
    """Text and logprobs of one sequence. Nothing of a stop string, or after it, ever comes out:

    a token's logprob waits until its text is out.
    """

    def __init__(
        self,
        index: int,
        codec: TextCodec,
        prompt: tuple[int, ...],
        *,
        stop: tuple[str, ...],
        min_tokens: int,
    ) -> None:
        self.index = index
        self.tokens = 0  # generated, the one that ended it included
        self.finish_reason: Ending | None = None
        self._codec = codec
        self._detokenizer = codec.detokenizer(prompt)
        self._matcher = StopMatcher(stop)
        self._min_tokens = min_tokens
        self._decoded = 0  # characters decoded
        self._shown = 0  # of those, shown; the rest may be the start of a stop string
        self._waiting: list[TokenLogprob] = []

    def take(self, event: TokenEvent) -> Delta:
        """What this event adds. Raises EngineUnavailable if the engine gave the sequence up."""
        if event.finish_reason == "abort":
            raise EngineUnavailable("the engine ended this request before its answer was complete")
        if event.token_id is not None:
            self.tokens += 1
        piece = self._decode(event)
        text, stopped = self._match(piece)
        if event.finish_reason is not None and not stopped:
            text += self._matcher.flush()
        self._shown += len(text)
        self.finish_reason = "stop" if stopped else event.finish_reason
        released = self._release(stopped)
        unshown = () if self.finish_reason is None else self._unshown(event)
        stop_string = self._matcher.matched if stopped else None
        return Delta(self.index, text, released, self.finish_reason, stop_string, unshown)

    def _decode(self, event: TokenEvent) -> str:
        piece = ""
        ended_it = event.finish_reason == "stop"  # such a token is no part of the text
        if event.token_id is not None and not ended_it:
            if event.logprob is not None:
                self._waiting.append(self._logprob(event, event.token_id, event.logprob))
            if not self._codec.is_special(event.token_id):
                piece = self._detokenizer.push(event.token_id)
        if event.finish_reason is not None:
            piece += self._detokenizer.flush()
        self._decoded += len(piece)
        return piece

    def _match(self, piece: str) -> tuple[str, bool]:
        if self.tokens <= self._min_tokens:  # stop strings count after min_tokens, as in vLLM
            return piece, False
        return self._matcher.push(piece)

    def _logprob(self, event: TokenEvent, token_id: int, logprob: float) -> TokenLogprob:
        token = self._codec.token
        top = tuple((token(other), max(LOWEST, value)) for other, value in event.top_logprobs)
        return TokenLogprob(token(token_id), max(LOWEST, logprob), top, self._decoded)

    def _unshown(self, last: TokenEvent) -> tuple[TokenLogprob, ...]:
        """What is left of the tokens whose logprobs are wanted."""
        token_id, logprob = last.token_id, last.logprob
        if last.finish_reason == "stop" and token_id is not None and logprob is not None:
            self._waiting.append(self._logprob(last, token_id, logprob))
        return tuple(self._waiting)

    def _release(self, stopped: bool) -> tuple[TokenLogprob, ...]:
        """Those whose text is out now; at a normal end also those without text of their own."""
        if not self._waiting:
            return ()
        all_out = self.finish_reason is not None and not stopped
        out = [one for one in self._waiting if all_out or one.offset < self._shown]
        self._waiting = self._waiting[len(out) :]
        return tuple(out)
