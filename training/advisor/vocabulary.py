"""How the base's tokens fit the data: fertility, unknown tokens, tokens that were never trained.

Here: vocabulary, never_trained. Not here: losses, what follows from it (rules.py).

Fertility: tokens a word, as Rust et al. 2021 (arXiv:2012.15613) use it. Never-trained tokens:
after Land & Bartolo 2024 (arXiv:2405.05417): bytes that no text has, in UTF-8, cannot have been
trained on, and a token whose embedding lies among theirs was not either.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.advisor.evidence import Vocabulary
from training.tokens import Tokenized

IMPOSSIBLE = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes of no UTF-8 text
NEAR = 1.5
"""A row is among those if it is no further from their mean than so often the furthest of them."""

OFTEN, RATIO, MOST_RARE = 5, 20.0, 256
"""Rare tokens: at least so many in the data, and so many times as frequent as in general text;
the last is also how many trainable tokens a job takes."""

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    embeddings: Tensor,
    data: Sequence[Tokenized],
    general: Sequence[Tokenized],
) -> Vocabulary:
    """`embeddings`: the base's input embeddings, [vocabulary, width]; neither part is empty."""
    counts, special = _counts(data), set(tokenizer.all_special_ids)
    others = _counts(general)
    total = max(1, counts.total())
    single = _byte_tokens(tokenizer)
    high = {token for byte, token in single.items() if byte >= 0x80}
    dead = never_trained(embeddings, single)
    untrained = [one for one, _ in counts.most_common() if dead is not None and one in dead]
    words, characters = _fertility(tokenizer, data)
    general_words, general_characters = _fertility(tokenizer, general)
    unknown: Any = tokenizer.unk_token_id
    return Vocabulary(
        tokens_per_word=words,
        tokens_per_character=characters,
        general_tokens_per_word=general_words,
        general_tokens_per_character=general_characters,
        unknown_share=0.0 if unknown is None else counts[unknown] / total,
        byte_share=sum(counts[one] for one in high) / total,
        untrained_share=None if dead is None else sum(counts[one] for one in untrained) / total,
        untrained=tuple(untrained),
        rare=tuple(one for one in _rare(counts, others) if one not in special),
        general_byte_share=sum(others[one] for one in high) / max(1, others.total()),
    )


def never_trained(embeddings: Tensor, byte_tokens: dict[int, int]) -> set[int] | None:
    """Ids whose rows lie among those of impossible bytes; None without such bytes to go by."""
    known = [byte_tokens[byte] for byte in IMPOSSIBLE if byte in byte_tokens]
    known = [one for one in known if one < len(embeddings)]
    if len(known) < len(IMPOSSIBLE) // 2:
        return None
    rows = embeddings.detach().float()
    middle = rows[known].mean(0)
    distances = (rows - middle).norm(dim=1)  # [vocabulary]
    bound = NEAR * distances[known].max()
    return set(torch.nonzero(distances <= bound).flatten().tolist())


def trainable_ids(found: Vocabulary) -> tuple[int, ...]:
    """The tokens that a probe trains: the never-trained ones first, then rare ones."""
    return tuple(dict.fromkeys((*found.untrained, *found.rare)))[:MOST_RARE]


def _counts(rows: Iterable[Tokenized]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for row in rows:
        counts.update(row.input_ids)
    return counts


def _rare(counts: Counter[int], others: Counter[int]) -> list[int]:
    """The most frequent first. A token that general text lacks counts as half a one there."""
    total, general = max(1, counts.total()), max(1, others.total())
    return [
        token
        for token, count in counts.most_common()
        if count >= OFTEN and count / total >= RATIO * max(others[token], 0.5) / general
    ]


def _byte_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Byte → id of the token that is this byte alone, whichever way the tokenizer spells bytes."""
    vocabulary = tokenizer.get_vocab()
    found = {
        int(named[1], 16): token
        for text, token in vocabulary.items()
        if (named := _FALLBACK.fullmatch(text))
    }
    if found:
        return found
    spelt = _byte_level_alphabet()
    if sum(character in vocabulary for character in spelt.values()) < len(spelt):
        return {}
    return {byte: vocabulary[character] for byte, character in spelt.items()}


def _byte_level_alphabet() -> dict[int, str]:
    """GPT-2's: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelt = {byte: chr(byte) for byte in printable}
    return spelt | {byte: chr(256 + number) for number, byte in enumerate(others)}


def _fertility(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokenized]
) -> tuple[float, float]:
    """Tokens a word, and a character; special tokens aside."""
    special = set(tokenizer.all_special_ids)
    tokens = words = characters = 0
    for row in rows:
        ids = [one for one in row.input_ids if one not in special]
        text = tokenizer.decode(ids)
        assert isinstance(text, str)
        tokens += len(ids)
        words += len(text.split())
        characters += len(text)
    return tokens / max(1, words), tokens / max(1, characters)
