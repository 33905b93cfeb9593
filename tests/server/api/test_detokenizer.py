"""Text comes out in whole characters and without stop strings, however it is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.api.detokenizer import MAX_PENDING, Detokenizer, StopMatcher
from server.api.text import TextCodec
from tests.server.api.fakes import make_tokenizer

BYTES = TextCodec(make_tokenizer())


def fallback_codec() -> TextCodec:
    """As SentencePiece models do it: words start with ▁, unknown characters are byte tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "b"]
    vocabulary = {word: index for index, word in enumerate(words)}
    bpe = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


FALLBACK = fallback_codec()
WORD, LETTER = 257, 258


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 260), max_size=40))
def test_pieces_add_up_to_the_whole(ids: list[int]):
    assert "".join(pieces(Detokenizer(BYTES.decode, ()), ids)) == BYTES.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.text(max_size=5))
def test_no_character_is_split(text: str, before: str):
    ids = list(BYTES._encode(text))
    said = pieces(Detokenizer(BYTES.decode, BYTES._encode(before)), ids)
    assert "".join(said) == text
    assert all("\ufffd" not in piece for piece in said) or "\ufffd" in text


def test_an_incomplete_character_comes_out_at_the_end():
    ids = list(BYTES._encode("né"))[:-1]
    assert pieces(Detokenizer(BYTES.decode, ()), ids) == ["n", "", "\ufffd"]


def test_bytes_that_are_no_text_do_not_pile_up():
    continuation = BYTES._encode("é")[1]
    said = pieces(Detokenizer(BYTES.decode, ()), [continuation] * 100)
    assert "".join(said) == "\ufffd" * 100
    assert any(said[:MAX_PENDING])


def test_a_prompt_that_ends_inside_a_character():
    first, second = BYTES._encode("é")
    assert pieces(Detokenizer(BYTES.decode, (65, first)), [second]) == ["é", ""]


def test_a_leading_space_is_kept_after_a_prompt():
    assert pieces(Detokenizer(FALLBACK.decode, (WORD,)), [WORD, LETTER]) == [" a", "b", ""]


def test_byte_fallback_waits_for_the_whole_character():
    ids = [WORD, *(byte + 1 for byte in "é好".encode()), WORD]
    assert pieces(Detokenizer(FALLBACK.decode, (LETTER,)), ids) == [
        " a", "", "é", "", "", "好", " a", ""
    ]  # fmt: skip


def test_byte_fallback_cut_short_after_a_character():
    ids = [byte + 1 for byte in "好好".encode()][:-1]
    said = pieces(Detokenizer(FALLBACK.decode, (LETTER,)), ids)
    assert said[:3] == ["", "", "好"]
    assert set("".join(said[3:])) == {"\ufffd"}


def match(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    matcher, text = StopMatcher(stops), ""
    for part in parts:
        shown, stopped = matcher.push(part)
        text += shown
        if stopped:
            return text, True
    return text + matcher.flush(), False


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab", max_size=5), max_size=8),
)
def test_the_cut_does_not_matter(stops: list[str], parts: list[str]):
    whole = "".join(parts)
    expected, stopped = whole, False
    for end in range(1, len(whole) + 1):  # the first to complete, the longest of those
        found = [stop for stop in stops if whole[:end].endswith(stop)]
        if found:
            expected, stopped = whole[: end - max(map(len, found))], True
            break
    assert match(stops, parts) == (expected, stopped)


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (["he", "llo", "STO"], ["he", "llo", ""]),
        (["xS", "TOx", "S"], ["x", "STOx", ""]),
        (["SSTO", "x"], ["S", "STOx"]),
    ],
)
def test_only_what_may_become_a_stop_string_is_held(parts: list[str], shown: list[str]):
    matcher = StopMatcher(["STOP"])
    assert [matcher.push(part)[0] for part in parts] == shown
