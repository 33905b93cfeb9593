"""One line of a training file: the three forms that are taken, read strictly.

Here: ChatExample, PromptExample, PreferenceExample, read_example. Not here: files of them
(dataset.py), tokens, templates.

Forms and field names: OpenAI's fine-tuning guide (chat; preference, for method "dpo") and its
older prompt/completion form.
"""

from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import loads, shorten

MAX_LINE_BYTES = 1 << 20
"""Of one example. Longer than any context that is trained on here, tokens of four bytes assumed."""

MAX_DEPTH = 16

Format = Literal["chat", "prompt", "preference"]
Text = Annotated[str, StringConstraints(min_length=1)]
Group = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""Whom or what an example is about: the advisor compares groups (advisor/groups.py)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Message(_Part):
    """A turn. `weight` 0 keeps an assistant's turn out of the loss."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: Text | None = None
    weight: Annotated[int, Field(ge=0, le=1)] | None = None


Messages = Annotated[tuple[Message, ...], Field(strict=False, min_length=1)]  # JSON has arrays


class ChatExample(_Part):
    """A conversation; the assistant's turns are learned."""

    messages: Messages
    group: Group | None = None


class PromptExample(_Part):
    """Plain text continued by plain text; the completion is learned."""

    prompt: str
    completion: Text
    group: Group | None = None


class _Conversation(_Part):
    messages: Messages


Answer = Annotated[tuple[Message, ...], Field(strict=False, min_length=1, max_length=1)]


class PreferenceExample(_Part):
    """Two answers to one conversation, of which the first is better."""

    input: _Conversation
    preferred_output: Answer
    non_preferred_output: Answer


Example = Union[ChatExample, PromptExample, PreferenceExample]  # noqa: UP007 - read at run time

_KINDS: dict[str, tuple[Format, type[Example]]] = {  # by the field that no other form has
    "messages": ("chat", ChatExample),
    "completion": ("prompt", PromptExample),
    "preferred_output": ("preference", PreferenceExample),
}


def read_example(line: bytes) -> tuple[Format, Example]:
    """The example that a line holds, its newline off.

    Raises InvalidRequest or TooLarge, whose message says what is wrong and where in the line.
    """
    value = loads(line, what="the line", max_bytes=MAX_LINE_BYTES, max_depth=MAX_DEPTH)
    if not isinstance(value, dict):
        raise InvalidRequest("the line is not a JSON object")
    known = [key for key in _KINDS if key in value]
    if len(known) != 1:
        held = ", ".join(shorten(key) for key in list(value)[:8]) or "none"
        raise InvalidRequest(
            "the line is none of the forms taken: chat has 'messages'; text has 'prompt' and "
            "'completion'; preference has 'input', 'preferred_output' and 'non_preferred_output'. "
            f"Its keys: {held}"
        )
    form, kind = _KINDS[known[0]]
    try:
        example = kind.model_validate(value)
    except ValidationError as bad:
        raise InvalidRequest(_first_fault(bad)) from None
    _check_turns(example)
    return form, example


def _check_turns(example: Example) -> None:
    if isinstance(example, ChatExample):
        _check_conversation(example.messages, "messages")
        if example.messages[-1].role != "assistant":
            raise InvalidRequest(
                "messages: the last one is not the assistant's, so there is nothing to learn after "
                "it; end with an assistant message"
            )
        if not any(m.role == "assistant" and m.weight != 0 for m in example.messages):
            raise InvalidRequest("messages: every assistant message has weight 0; none is learned")
    elif isinstance(example, PreferenceExample):
        _check_conversation(example.input.messages, "input.messages")
        if example.input.messages[-1].role == "assistant":
            raise InvalidRequest(
                "input.messages: the last one is the assistant's, and so are the outputs; end with "
                "a user message"
            )
        for name in ("preferred_output", "non_preferred_output"):
            if any(message.role != "assistant" for message in getattr(example, name)):
                raise InvalidRequest(f"{name}: only assistant messages are taken")
        if example.preferred_output == example.non_preferred_output:
            raise InvalidRequest("preferred_output and non_preferred_output are the same")


def _check_conversation(messages: tuple[Message, ...], where: str) -> None:
    for number, message in enumerate(messages):
        if message.role in ("system", "developer") and number > 0:
            raise InvalidRequest(f"{where}[{number}].role: {message.role!r} can only come first")
        if message.weight is not None and message.role != "assistant":
            raise InvalidRequest(f"{where}[{number}].weight: only assistant messages have one")
    if not any(message.role == "user" for message in messages):
        raise InvalidRequest(f"{where}: there is no message with the role 'user'")


def _first_fault(bad: ValidationError) -> str:
    fault: Any = bad.errors(include_url=False, include_input=False, include_context=False)[0]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in fault["loc"]).lstrip(".")
    more = bad.error_count() - 1
    return f"{path[:200]}: {fault['msg']}" + (f" (and {more} more)" if more else "")
