"""A tiny random base that has a tokenizer and a chat template, and adapters for it."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.adapters import RECIPES, make_adapter
from tests.support.families import LLAMA, make_base

SPECIAL = ("<pad>", "<s>", "<end>")
CONTEXT = 4096  # tokens: enough for a stream that lasts some seconds
TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
FAMILY = replace(
    LLAMA,
    config=dict(LLAMA.config)
    | {
        "vocab_size": 256 + len(SPECIAL),
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)


def make_tiny_base(folder: Path) -> Path:
    """A Llama of 3 layers over bytes, as an ordinary folder."""
    make_base(FAMILY, folder)
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *byte_tokens])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<end>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


def make_tiny_adapters(base: Path, folder: Path, count: int = 3) -> dict[str, Path]:
    """Adapters unlike one another, by name."""
    recipes = RECIPES[:count]
    return {
        recipe.name: make_adapter(base, FAMILY, recipe, folder / recipe.name, seed=number)
        for number, recipe in enumerate(recipes)
    }
