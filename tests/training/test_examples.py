"""What a line of a training file may be, and what is said of one that may not."""

import json

import pytest

from adapters_store.errors import AdapterdError
from training.examples import ChatExample, PreferenceExample, PromptExample, read_example

USER = {"role": "user", "content": "2 + 2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}


def line(value: object) -> bytes:
    return json.dumps(value).encode()


def test_the_three_forms() -> None:
    system = {"role": "system", "content": "Be short."}
    chat = {"messages": [system, USER, {**FIVE, "weight": 0}, USER, {**FOUR, "weight": 1}]}
    form, example = read_example(line(chat))
    assert form == "chat"
    assert isinstance(example, ChatExample)
    assert [m.role for m in example.messages] == ["system", "user", "assistant"] + [
        "user",
        "assistant",
    ]
    assert [m.weight for m in example.messages] == [None, None, 0, None, 1]

    form, example = read_example('{"prompt": "", "completion": "Grüße"}'.encode())
    assert form == "prompt"
    assert example == PromptExample(prompt="", completion="Grüße")

    pair = {
        "input": {"messages": [USER]}, "preferred_output": [FOUR], "non_preferred_output": [FIVE]
    }  # fmt: skip
    form, example = read_example(line(pair))
    assert form == "preference"
    assert isinstance(example, PreferenceExample)
    assert example.preferred_output[0].content == "4"


def test_an_example_may_name_its_group() -> None:
    for example in ({"messages": [USER, FOUR]}, {"prompt": "", "completion": "x"}):
        _, read = read_example(line(example | {"group": "north"}))
        assert isinstance(read, ChatExample | PromptExample)
        assert read.group == "north"
        _, without = read_example(line(example))
        assert isinstance(without, ChatExample | PromptExample)
        assert without.group is None
        for bad in ("", "x" * 65, 7):
            with pytest.raises(AdapterdError, match="group: "):
                read_example(line(example | {"group": bad}))
    pair = {
        "input": {"messages": [USER]}, "preferred_output": [FOUR], "non_preferred_output": [FIVE]
    }  # fmt: skip
    with pytest.raises(AdapterdError, match="group: Extra"):
        read_example(line(pair | {"group": "north"}))


CHAT_FAULTS: list[tuple[list[object], str]] = [
    ([{"role": "robot", "content": "x"}, FOUR], "messages[0].role: Input should be 'system'"),
    ([{"role": "user"}, FOUR], "messages[0].content: Field required"),
    ([{"role": "user", "content": 4}, FOUR], "messages[0].content: Input should be a valid string"),
    ([{"role": "user", "content": None}, FOUR], "messages[0].content: Input should be a valid"),
    ([{"role": "user", "content": ""}, FOUR], "messages[0].content: String should have at least 1"),
    ([{**USER, "text": "x"}, FOUR], "messages[0].text: Extra inputs are not permitted"),
    ([USER, {**FOUR, "weight": 2}], "messages[1].weight: Input should be less than or equal to 1"),
    ([USER, {**FOUR, "weight": True}], "messages[1].weight: Input should be a valid integer"),
    ([USER, {**FOUR, "weight": 0}], "every assistant message has weight 0"),
    ([{**USER, "weight": 1}, FOUR], "messages[0].weight: only assistant messages have one"),
    ([USER, FOUR, USER], "end with an assistant message"),
    ([USER, {"role": "system", "content": "x"}, FOUR], "messages[1].role: 'system' can only come"),
    ([FOUR], "there is no message with the role 'user'"),
    ([], "messages: Tuple should have at least 1 item"),
    ([USER, "hello"], "messages[1]: Input should be a valid dictionary"),
]


@pytest.mark.parametrize(("messages", "reason"), CHAT_FAULTS)
def test_a_conversation_at_fault(messages: list[object], reason: str) -> None:
    with pytest.raises(AdapterdError) as told:
        read_example(line({"messages": messages}))
    assert reason in told.value.message


OTHER_FAULTS: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b"   ", "is empty"),
    (b"[]", "is not a JSON object"),
    (b'"text"', "is not a JSON object"),
    (b"{}", "none of the forms taken"),
    (b'{"text": "x"}', "Its keys: 'text'"),
    (b'{"prompt": "x"}', "none of the forms taken"),
    (b'{"messages": [], "completion": "x"}', "none of the forms taken"),
    (b'{"prompt": "x", "completion": ""}', "completion: String should have at least 1"),
    (b'{"prompt": ["x"], "completion": "y"}', "prompt: Input should be a valid string"),
    (b'{"prompt": "x", "completion": "y", "id": 3}', "id: Extra inputs are not permitted"),
    (b'{"completion": "y"}', "prompt: Field required"),
    (b'{"prompt": "x", "prompt": "z", "completion": "y"}', "the key 'prompt' twice"),
    (b'{"prompt": "x", "completion": NaN}', "NaN"),
    (b'{"prompt": "x", "completion": "y"', "is not valid JSON"),
    (b'{"prompt": "x", "completion": "y"} {}', "is not valid JSON"),
    (b'{"prompt": "\xff", "completion": "y"}', "is not UTF-8: bad byte at offset 12"),
    (b'\xef\xbb\xbf{"prompt": "x", "completion": "y"}', "byte-order mark"),
    (b'{"prompt": "\\ud800", "completion": "y"}', "unpaired surrogate"),
    (b"[" * 40 + b"]" * 40, "nested more than 16 deep"),
    (b'{"prompt": "x", "completion": "' + b"y" * (1 << 20) + b'"}', "at most 1048576 are taken"),
]


@pytest.mark.parametrize(("data", "reason"), OTHER_FAULTS, ids=[r for _, r in OTHER_FAULTS])
def test_a_line_at_fault(data: bytes, reason: str) -> None:
    with pytest.raises(AdapterdError) as told:
        read_example(data)
    assert reason in told.value.message
    assert len(told.value.message) < 1000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preferred_output": [USER]}, "preferred_output: only assistant messages"),
        ({"non_preferred_output": [FOUR]}, "are the same"),
        ({"non_preferred_output": []}, "non_preferred_output: Tuple should have at least 1 item"),
        ({"input": {"messages": [USER, FOUR]}}, "input.messages: the last one is the assistant's"),
        ({"input": {}}, "input.messages: Field required"),
        ({"input": "2 + 2?"}, "input: Input should be a valid dictionary"),
    ],
)
def test_a_preference_at_fault(change: dict[str, object], reason: str) -> None:
    pair: dict[str, object] = {
        "input": {"messages": [USER]}, "preferred_output": [FOUR], "non_preferred_output": [FIVE]
    }  # fmt: skip
    with pytest.raises(AdapterdError) as told:
        read_example(line(pair | change))
    assert reason in told.value.message
