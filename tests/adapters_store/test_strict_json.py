import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters_store.errors import InvalidAdapter, InvalidRequest, TooLarge
from adapters_store.strict_json import INT_HIGH, INT_LOW, loads

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT_LOW, INT_HIGH)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read(text: str | bytes, *, max_bytes: int = 1 << 24, max_depth: int = 64):
    data = text if isinstance(text, bytes) else text.encode()
    return loads(data, what="body", max_bytes=max_bytes, max_depth=max_depth)


@given(VALUES, st.booleans())
@settings(max_examples=150, deadline=None)
def test_reads_what_json_writes(value, ascii_only):
    assert read(json.dumps(value, ensure_ascii=ascii_only)) == value


@given(st.binary(max_size=60) | st.text('{}[]",:\\u0d8e+-.19ntrue ', max_size=60))
@settings(max_examples=400, deadline=None)
def test_reads_or_refuses_anything_and_never_more_than_json_does(data):
    said = "taken"
    try:
        assert read(data) == json.loads(data)
    except (InvalidRequest, TooLarge) as refused:
        said = refused.message
    assert 0 < len(said) < 1000


@pytest.mark.parametrize(
    ("text", "says", "param"),
    [
        ("", "empty", None),
        ("  ", "empty", None),
        (b'\xef\xbb\xbf{"a": 1}', "byte-order mark", None),
        (b'{"a": "\xff"}', "offset 7", None),
        (b'{"a": "\xed\xa0\x80"}', "UTF-8", None),  # an encoded surrogate
        ('{"a": 1', "line 1, column", None),
        ('{"a": 1} x', "Extra data", None),
        ('{"a": 01}', "not valid JSON", None),
        ("{'a': 1}", "not valid JSON", None),
        ('{"a": "\n"}', "control character", None),
        ('{"n": 1, "n": 2}', "the key 'n' twice", "n"),
        ('{"m": [{"n": 1, "\\u006e": 1}]}', "the key 'n' twice", "m[0].n"),
        ('{"a": {"temperature": NaN}}', "NaN", "a.temperature"),
        ('{"a": [0, -Infinity]}', "-Infinity", "a[1]"),
        ("Infinity", "Infinity", None),
        ('{"a": 1e999}', "too large to be finite", "a"),
        ('{"a": -1e999}', "too large to be finite", "a"),
        ('{"a": 9223372036854775808}', "outside 64 bits", "a"),
        ('{"a": -9223372036854775809}', "outside 64 bits", "a"),
        ('{"seed": ' + "9" * 100_000 + "}", "outside 64 bits", "seed"),
        ('{"a": "\\ud800"}', "surrogate", None),
        ('{"\\udfff": 1}', "surrogate", None),
    ],
)
def test_refuses_and_says_where(text, says, param):
    with pytest.raises(InvalidRequest) as refused:
        read(text)
    assert says in refused.value.message
    assert "body" in refused.value.message
    assert refused.value.param == param
    assert len(refused.value.message) < 500


def test_keeps_what_only_looks_forbidden():
    text = '{"NaN": "Infinity", "digits": "99999999999999999999", "pair": "\\ud83d\\ude00"}'
    assert read(text) == {"NaN": "Infinity", "digits": "9" * 20, "pair": "😀"}
    assert read(str(INT_HIGH)) == INT_HIGH
    assert read("1e308") == 1e308
    assert math.copysign(1, read("-0.0")) == -1


def test_size_limit_is_inclusive():
    assert read("[1]", max_bytes=3) == [1]
    with pytest.raises(TooLarge, match="4 bytes long; at most 3"):
        read("[11]", max_bytes=3)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_limit_is_inclusive(opening, closing):
    per_round = opening.count("[") + opening.count("{")
    rounds = 64 // per_round
    assert read(opening * rounds + "1" + closing * rounds)
    with pytest.raises(InvalidRequest, match="nested more than 64 deep"):
        read("[" + opening * rounds + "1" + closing * rounds + "]")


def test_brackets_in_strings_are_not_depth():
    deep = '"[[[[\\"[[[[\\\\"'
    assert read(f"[{deep}, {{{deep}: {deep}}}]", max_depth=2)


def test_depth_is_counted_before_the_parser_recurses():
    with pytest.raises(InvalidRequest, match="deep"):
        read("[" * 2_000_000)
    with pytest.raises(InvalidRequest, match="deep"):
        read('{"a":' * 500_000)


@pytest.mark.parametrize(
    "text",
    [
        '["' + '\\"' * 2_000_000,  # a string that never ends, full of quotes
        '["' + "\\" * 4_000_000,
        '"' * 4_000_001,
        "[]," * 1_300_000,
        "{" + ",".join(f'"k{i}":1' for i in range(100_000)) + ',"k0":1}',
        "[" + "9" * 4_000_000 + "]",
    ],
    ids=["quotes", "backslashes", "empty strings", "brackets", "keys", "digits"],
)
def test_hostile_bodies_are_refused_in_linear_time(text):
    started = time.perf_counter()
    with pytest.raises(InvalidRequest) as refused:
        read(text)
    assert time.perf_counter() - started < 10
    assert len(refused.value.message) < 1000


def test_error_is_of_the_kind_asked_for_and_small():
    with pytest.raises(InvalidAdapter) as refused:
        loads(
            json.dumps({"k" * 10_000: {"k" * 10_000: [0]}}).replace("0", "NaN").encode(),
            what="adapter_config.json",
            max_bytes=1 << 20,
            error=InvalidAdapter,
        )
    assert refused.value.param is not None
    assert len(refused.value.param) <= 200
