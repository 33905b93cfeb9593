"""OpenAI's reply objects for completions and chat, whole and in chunks.

Here: what a Delta looks like in each dialect. Not here: where deltas come from, how chunks travel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.api.choice import Delta, Ending, TokenLogprob
from server.api.generation import Generation, Usage
from server.api.text import Token

Json = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """A choice's deltas, gathered for a reply that is not streamed."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: Ending | None = None
    stop_string: str | None = None
    unshown: tuple[TokenLogprob, ...] = ()

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.logprobs.extend(delta.logprobs)
        self.finish_reason = delta.finish_reason
        self.stop_string = delta.stop_string
        self.unshown = delta.unshown


class Format(Protocol):
    """One dialect's words for one request."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json | list[Json]: ...

    def chunks(self, delta: Delta) -> list[Json]: ...

    def closing(self, usage: Usage) -> list[Json]:
        """A stream's last chunks, once every choice has ended."""
        ...


class CompletionFormat:
    """`text_completion` objects."""

    def __init__(self, generation: Generation, *, logprobs: bool, include_usage: bool) -> None:
        self._generation = generation
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._head = _head(generation, "text_completion")

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = [
            self._choice(Delta(index, "".join(one.text), tuple(one.logprobs), one.finish_reason))
            for index, one in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": _usage(usage)}

    def chunks(self, delta: Delta) -> list[Json]:
        usage = {"usage": None} if self._include_usage else {}
        return [{**self._head, "choices": [self._choice(delta)], **usage}]

    def closing(self, usage: Usage) -> list[Json]:
        return _usage_chunk(self._head, usage) if self._include_usage else []

    def _choice(self, delta: Delta) -> Json:
        per_prompt = self._generation.requests[0].n
        echoed = len(self._generation.echoes[delta.choice // per_prompt])
        return {
            "index": delta.choice,
            "text": delta.text,
            "logprobs": _completion_logprobs(delta.logprobs, echoed) if self._logprobs else None,
            "finish_reason": delta.finish_reason,
        }


class ChatFormat:
    """`chat.completion` and `chat.completion.chunk` objects."""

    def __init__(self, generation: Generation, *, logprobs: bool, include_usage: bool) -> None:
        self._logprobs = logprobs
        self._include_usage = include_usage
        self._whole_head = _head(generation, "chat.completion")
        self._chunk_head = _head(generation, "chat.completion.chunk")
        self._opened: set[int] = set()  # choices whose role has been said

    def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(one.text), "refusal": None},
                "logprobs": self._said(one.logprobs),
                "finish_reason": one.finish_reason,
            }
            for index, one in enumerate(answers)
        ]
        return {**self._whole_head, "choices": choices, "usage": _usage(usage)}

    def chunks(self, delta: Delta) -> list[Json]:
        chunks = []
        if delta.choice not in self._opened:
            self._opened.add(delta.choice)
            chunks.append(self._chunk(delta.choice, {"role": "assistant", "content": ""}))
        content = {"content": delta.text} if delta.text else {}
        said = self._said(delta.logprobs) if delta.logprobs else None
        chunks.append(self._chunk(delta.choice, content, said, delta.finish_reason))
        return chunks

    def closing(self, usage: Usage) -> list[Json]:
        return _usage_chunk(self._chunk_head, usage) if self._include_usage else []

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        finish_reason: Ending | None = None,
    ) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._include_usage else {}
        return {**self._chunk_head, "choices": [choice], **usage}

    def _said(self, logprobs: Sequence[TokenLogprob]) -> Json | None:
        if not self._logprobs:
            return None
        content = [
            _chat_logprob(one.token, one.logprob)
            | {"top_logprobs": [_chat_logprob(token, value) for token, value in one.top]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}


def _head(generation: Generation, kind: str) -> Mapping[str, Any]:
    return {
        "id": generation.id,
        "object": kind,
        "created": generation.created,
        "model": generation.model,
        "adapter_version": generation.digest,
        "system_fingerprint": f"base-{generation.base_digest[:12]}",
    }


def _usage_chunk(head: Mapping[str, Any], usage: Usage) -> list[Json]:
    return [{**head, "choices": [], "usage": _usage(usage)}]


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _completion_logprobs(logprobs: Sequence[TokenLogprob], echoed: int) -> Json:
    return {
        "tokens": [one.token.text for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        # Keyed by text, so that of two tokens with one text the likelier stays, as at OpenAI.
        "top_logprobs": [
            {token.text: value for token, value in reversed(one.top)} for one in logprobs
        ],
        "text_offset": [echoed + one.offset for one in logprobs],
    }


def _chat_logprob(token: Token, logprob: float) -> Json:
    return {"token": token.text, "logprob": logprob, "bytes": list(token.data)}
