"""What is learned of an example is what the server's base would answer, and nothing before it."""

import asyncio

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import demo
from adapters_store.errors import InvalidRequest
from server.api.text import TextCodec
from server.api.wanted import Conversation, PlainText
from training.examples import ChatExample, Message, PromptExample
from training.tokens import NOT_LEARNED, Tokenized, tokenize

REASONING = (  # as templates do that keep an answer's reasoning only while it is the last
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if not loop.last %}{{ m.content.split('=')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.base_path())


def chat(*turns: str, weights: dict[int, int] | None = None) -> ChatExample:
    """Turns by the user and the assistant, in turns."""
    weights = weights or {}
    return ChatExample(
        messages=tuple(
            Message(role="assistant" if n % 2 else "user", content=content, weight=weights.get(n))
            for n, content in enumerate(turns)
        )
    )


def learned(tokenizer: PreTrainedTokenizerBase, one: Tokenized) -> str:
    assert all(
        label in (NOT_LEARNED, token)
        for token, label in zip(one.input_ids, one.labels, strict=True)
    )
    return str(tokenizer.decode([label for label in one.labels if label != NOT_LEARNED]))


def prompt_of(one: Tokenized) -> tuple[int, ...]:
    """The ids before the first that is learned."""
    first = next(at for at, label in enumerate(one.labels) if label != NOT_LEARNED)
    return one.input_ids[:first]


def served(tokenizer: PreTrainedTokenizerBase, prompt: PlainText | Conversation) -> tuple[int, ...]:
    return asyncio.run(TextCodec(tokenizer).encode(prompt, param="prompt", context=1000))


def test_a_completion_is_learned_behind_its_prompt_as_served(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    example = PromptExample(prompt="Once upon a time", completion=" there was")
    (one,) = tokenize(example, tokenizer, max_tokens=100)
    assert learned(tokenizer, one) == " there was<|end|>"
    assert prompt_of(one) == served(tokenizer, PlainText("Once upon a time"))
    assert one.learned == len(one.input_ids) - len(prompt_of(one))


def test_every_answer_is_learned_behind_what_was_said_before(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    example = chat("hi", "hello", "how much?", "two")
    (one,) = tokenize(example, tokenizer, max_tokens=100)
    assert learned(tokenizer, one) == "hello<|end|>two<|end|>"
    assert tokenizer.decode(one.input_ids) == (
        "<|user|>hi<|end|><|assistant|>hello<|end|><|user|>how much?<|end|><|assistant|>two<|end|>"
    )
    asked = Conversation((example.messages[0],))  # type: ignore[arg-type] - role and content count
    assert prompt_of(one) == served(tokenizer, asked)


def test_an_answer_of_no_weight_is_read_and_not_learned(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    (one,) = tokenize(
        chat("hi", "hello", "how much?", "two", weights={1: 0}), tokenizer, max_tokens=100
    )
    assert learned(tokenizer, one) == "two<|end|>"
    assert "hello" in tokenizer.decode(one.input_ids)


def test_a_template_that_rewrites_earlier_turns_gives_each_answer_a_sequence(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = REASONING
    found = tokenize(chat("a?", "think=1", "b?", "more=2"), tokenizer, max_tokens=100)
    assert [learned(tokenizer, one) for one in found] == ["think=1<|end|>", "more=2<|end|>"]
    assert "think" not in tokenizer.decode(found[1].input_ids)


def test_an_answer_ends_even_where_the_template_forgets_to_say_so(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (one,) = tokenize(chat("hi", "hello"), tokenizer, max_tokens=100)
    assert learned(tokenizer, one) == "hello<|end|>"


def test_too_long_for_the_context_says_both_lengths(tokenizer: PreTrainedTokenizerBase) -> None:
    example = PromptExample(prompt="one two three", completion="four")
    (one,) = tokenize(example, tokenizer, max_tokens=100)
    length = len(one.input_ids)
    assert tokenize(example, tokenizer, max_tokens=length) == (one,)
    with pytest.raises(InvalidRequest, match=f"is {length} tokens long, and at most {length - 1}"):
        tokenize(example, tokenizer, max_tokens=length - 1)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "no chat template; use prompt and completion"),
        ("{{ raise_exception('no system here') }}", "refuses them: no system here"),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}",
            r"messages\[1\]: the base's chat template does not begin an answer",
        ),
    ],
)
def test_what_a_template_cannot_do_is_said(
    tokenizer: PreTrainedTokenizerBase, template: str | None, said: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InvalidRequest, match=said):
        tokenize(chat("hi", "hello"), tokenizer, max_tokens=100)
