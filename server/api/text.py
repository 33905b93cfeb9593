"""The tokenizer's side of the house: text and conversations to token ids, and back.

Here: TextCodec. Long work runs in threads, off the event loop. Not here: the engine, sampling.
"""

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters_store.errors import ContextLengthExceeded, InvalidRequest
from server.api.detokenizer import REPLACEMENT, Detokenizer
from server.api.wanted import Conversation, PlainText, Prompt

INLINE_CHARACTERS = 2000  # tokenised in well under a millisecond; a thread would cost more

_FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True)
class Token:
    """One token as logprobs show it. Where its bytes are no text by themselves, `text` spells them

    as OpenAI does: bytes:\\xc3.
    """

    id: int
    text: str
    data: bytes
    special: bool = False  # a control token, which has no text of its own


class TextCodec:
    """One base's tokenizer and chat template. Nothing here changes after construction."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        # The Rust tokenizers may be used from several threads at once, the Python ones may not.
        self._guard: AbstractContextManager = (
            nullcontext() if tokenizer.is_fast else threading.Lock()
        )
        added = tokenizer.added_tokens_decoder.items()
        self._special = frozenset(token_id for token_id, token in added if token.special)
        tokenizer.encode("")  # clears a truncation saved with the tokenizer, before threads use it
        self._anchor = tuple(tokenizer.encode("a", add_special_tokens=False)[-1:])
        self._anchor_text = self.decode(self._anchor)
        self._byte_of = _byte_alphabet()
        self._longest = max(map(len, tokenizer.get_vocab()))  # characters of text that a token is

    @classmethod
    def load(cls, model: str) -> "TextCodec":
        """The tokenizer in a folder or of a hub id. Blocking. Raises OSError, ValueError."""
        return cls(AutoTokenizer.from_pretrained(model, trust_remote_code=False))

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    async def encode(self, prompt: Prompt, *, param: str, context: int) -> tuple[int, ...]:
        """A prompt's token ids, with the special tokens that the tokenizer or template adds.

        Raises InvalidRequest, about `param`: no chat template, or one that refuses the messages;
        ContextLengthExceeded, untokenised, if by its length alone it is over `context` tokens.
        """
        if isinstance(prompt, PlainText):
            self._refuse_endless(prompt.text, param, context)
            if len(prompt.text) <= INLINE_CHARACTERS:
                return self._encode(prompt.text)
            return await asyncio.to_thread(self._encode, prompt.text)
        if isinstance(prompt, Conversation):
            return await asyncio.to_thread(self._encode_conversation, prompt, param, context)
        return prompt.ids

    def decode(self, ids: Sequence[int]) -> str:
        """Their text, special tokens left out."""
        if self._backend is not None:  # the same without transformers' wrapper, at a third of it
            return self._backend.decode(list(ids), skip_special_tokens=True)
        # Clean-up of spaces would make the text of a piece depend on what follows it.
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether it is a control token, which has no text."""
        return token_id in self._special

    def detokenizer(self, prompt: Sequence[int]) -> Detokenizer:
        """For one sequence that continues `prompt`."""
        return Detokenizer(self.decode, prompt)

    def token(self, token_id: int) -> Token:
        """One token, for logprobs; control tokens by their name."""
        word = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if self.is_special(token_id):
            return Token(token_id, word, word.encode(), special=True)
        # After another token, since at the start of a text some decoders strip its space.
        text = self.decode((*self._anchor, token_id)).removeprefix(self._anchor_text)
        if REPLACEMENT not in text:
            return Token(token_id, text, text.encode())
        data = self._bytes_of(word)
        if data is None:
            return Token(token_id, text, text.encode())
        return Token(token_id, "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)

    def _bytes_of(self, word: str) -> bytes | None:
        """The bytes of a vocabulary entry, in either of the two usual spellings."""
        if fallback := _FALLBACK_BYTE.fullmatch(word):
            return bytes([int(fallback[1], 16)])
        if all(character in self._byte_of for character in word):
            return bytes(self._byte_of[character] for character in word)
        return None

    def _encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        with self._guard:
            # Not verbose: whether it fits is checked, and answered, later.
            return tuple(self._tokenizer.encode(text, add_special_tokens=special, verbose=False))

    def _refuse_endless(self, text: str, param: str, context: int) -> None:
        """Megabytes that cannot fit would cost a gigabyte and many seconds to count in tokens.

        A token's name is at least as long as its text, so only a normaliser that drops characters
        could make more of them fit. Source: max_chars_per_token, as in vLLM.
        """
        if len(text) > context * self._longest:
            raise ContextLengthExceeded(
                f"the context is {context} tokens, which hold {context * self._longest} characters "
                f"at most, and the prompt has {len(text)}; shorten the prompt",
                param=param,
            )

    def _encode_conversation(
        self, conversation: Conversation, param: str, context: int
    ) -> tuple[int, ...]:
        if not self.has_chat_template:
            raise InvalidRequest(
                "this base model has no chat template; use /v1/completions, or serve a base whose "
                "tokenizer has one",
                param=param,
            )
        messages = [
            {"role": message.role, "content": message.content}
            | ({} if message.name is None else {"name": message.name})
            for message in conversation.messages
        ]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"the chat template refused: {error}", param=param) from error
        assert isinstance(text, str)
        self._refuse_endless(text, param, context)
        return self._encode(text, special=False)  # the template wrote them already


def _byte_alphabet() -> Mapping[str, int]:
    """Byte-level BPE's character for each byte: itself if printable, else the next from U+0100.

    Source: bytes_to_unicode of GPT-2's encoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }
