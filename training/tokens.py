"""Examples as the base reads them: token ids, and which of them are learned.

Here: Tokenized, tokenize, Preference, tokenize_preference, prompt_ids, answer_text. Not here: a
line's form (examples.py), batches, trainers.

A prompt is tokenised as the server tokenises a request, and what is learned as what a model
answers: token after token from there, up to the end that stops it. So training sees what serving
will.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from adapters_store.errors import InvalidRequest
from training.examples import ChatExample, Message, PreferenceExample, PromptExample

NOT_LEARNED = -100  # torch's ignore_index


@dataclass(frozen=True, slots=True)
class Tokenized:
    """One sequence: two tuples of the same length."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]  # the id itself where it is learned, elsewhere NOT_LEARNED

    @property
    def learned(self) -> int:
        """How many tokens the loss is taken over."""
        return sum(label != NOT_LEARNED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, each ended as an answer ends."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    ids: Sequence[int]
    learned: bool


def tokenize(
    example: ChatExample | PromptExample, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[Tokenized, ...]:
    """The sequences that an example comes to: one, unless its template rewrites earlier turns.

    Some templates drop an earlier answer's reasoning, say. Each answer is then learned behind the
    prompt that it would be given for, in a sequence of its own. Raises InvalidRequest if a sequence
    has more than `max_tokens`, and for conversations if the base has no chat template or it refuses
    them.
    """
    if isinstance(example, PromptExample):
        sequences = [_text(example, tokenizer)]
    else:
        sequences = list(_conversation(example, tokenizer))
    found = tuple(_joined(pieces, tokenizer) for pieces in sequences)
    longest = max(len(one.input_ids) for one in found)
    if longest > max_tokens:
        raise InvalidRequest(
            f"the example is {longest} tokens long, and at most {max_tokens} fit; shorten it, or "
            "split it"
        )
    return found


def tokenize_preference(
    example: PreferenceExample, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> Preference:
    """Raises InvalidRequest as `tokenize` does, for the longer of the two."""
    answers = (example.preferred_output, example.non_preferred_output)
    chosen, rejected = (
        tokenize(_answered(example, answer), tokenizer, max_tokens=max_tokens)[-1]
        for answer in answers
    )
    start = sum(label == NOT_LEARNED for label in chosen.labels)
    prompt = chosen.input_ids[:start]
    if rejected.input_ids[:start] != prompt or len(rejected.input_ids) == start:
        raise InvalidRequest("the base's chat template gives the two outputs different prompts")
    return Preference(prompt, chosen.input_ids[start:], rejected.input_ids[start:])


def prompt_ids(
    example: ChatExample | PromptExample, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[int, ...]:
    """What the last answer is given to, as the server would be asked for it.

    Raises InvalidRequest as `tokenize` does, or if that is nothing.
    """
    if isinstance(example, PromptExample):
        ids = tokenizer.encode(example.prompt, verbose=False)
    else:
        ids = _plain(tokenizer, _rendered(tokenizer, example.messages[:-1], answer=True))
    if not ids:
        raise InvalidRequest("the prompt is empty, so there is nothing to tell a class by")
    if len(ids) > max_tokens:
        raise InvalidRequest(
            f"the prompt is {len(ids)} tokens long, and at most {max_tokens} fit; shorten it"
        )
    return tuple(ids)


def answer_text(example: ChatExample | PromptExample) -> str:
    """The last answer, without white space at its ends. Raises InvalidRequest if it is blank."""
    last = (
        example.completion if isinstance(example, PromptExample) else example.messages[-1].content
    )
    if not last.strip():
        raise InvalidRequest("the answer is blank, so it names no class")
    return last.strip()


def _answered(example: PreferenceExample, answer: Sequence[Message]) -> ChatExample:
    """The conversation with one of its answers, which alone is learned."""
    before = (
        message.model_copy(update={"weight": 0}) if message.role == "assistant" else message
        for message in example.input.messages
    )
    return ChatExample(messages=(*before, *answer))


def _text(example: PromptExample, tokenizer: PreTrainedTokenizerBase) -> list[_Piece]:
    prompt = tokenizer.encode(example.prompt, verbose=False)
    return [_Piece(prompt, False), _Piece(_plain(tokenizer, example.completion), True)]


def _conversation(
    example: ChatExample, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[_Piece]]:
    pieces: list[_Piece] = []
    done = ""  # the text of `pieces`
    for at, message in enumerate(example.messages):
        if message.role != "assistant" or message.weight == 0:
            continue
        prompt = _rendered(tokenizer, example.messages[:at], answer=True)
        whole = _rendered(tokenizer, example.messages[: at + 1], answer=False)
        if not whole.startswith(prompt):
            raise InvalidRequest(
                f"messages[{at}]: the base's chat template does not begin an answer as it asks for "
                "one, so there is no telling what to learn; use prompt and completion"
            )
        if pieces and not prompt.startswith(done):
            yield pieces
            pieces, done = [], ""
        pieces.append(_Piece(_plain(tokenizer, prompt.removeprefix(done)), False))
        pieces.append(_Piece(_plain(tokenizer, whole.removeprefix(prompt)), True))
        done = whole
    yield pieces


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer: bool
) -> str:
    """The template's text; with `answer`, up to where the assistant is to begin."""
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "the base model has no chat template; use prompt and completion instead of messages"
        )
    told = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=answer)
    except TemplateError as refusal:
        raise InvalidRequest(
            f"messages: the base's chat template refuses them: {refusal}"
        ) from None
    assert isinstance(text, str)
    return text


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def _joined(pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase) -> Tokenized:
    """All pieces in a row, ended as an answer ends: else a model would never learn to stop."""
    ids = [token for piece in pieces for token in piece.ids]
    labels = [token if piece.learned else NOT_LEARNED for piece in pieces for token in piece.ids]
    end: Any = tokenizer.eos_token_id  # an int, whatever transformers' annotations allow for
    if end is not None and end not in pieces[-1].ids:
        ids.append(end)
        labels.append(end)
    return Tokenized(tuple(ids), tuple(labels))
