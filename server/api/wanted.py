"""What a client wants generated, in words that every dialect can be put into.

Plain frozen data, between the schemas and the generation core. No text is tokenised here, no name
resolved.
"""

from collections.abc import Callable
from dataclasses import dataclass

from server.engine.messages import SamplingParams


@dataclass(frozen=True, slots=True)
class PlainText:
    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # as chat templates know them: system, user, assistant
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: tuple[Message, ...]


Prompt = PlainText | TokenIds | Conversation


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request: each of `prompts` continued `n` times under one model."""

    model: str  # the base's name, or an adapter's
    adapter_id: str | None  # an adapter's name, where `model` does not say it
    prompts: tuple[Prompt, ...]
    n: int
    max_tokens: int | None  # as asked; None: `default_max_tokens`
    default_max_tokens: int | None  # None: what is left of the context
    sampling: Callable[[int], SamplingParams]  # given max_tokens
    stop: tuple[str, ...]
    echo: bool  # the prompt's text before each answer
    stream: bool
    include_usage: bool  # in a stream, as its last chunk
    cache_salt: str = ""  # cached prompts are shared only with requests of the same salt
    sticky_key: str | None = None  # for whom, where the model's alias means two versions
    # Numbers of the adapters at work, none or one; None: `model` and `adapter_id` say it.
    lora: tuple[int, ...] | None = None
