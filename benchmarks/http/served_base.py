"""W1's base with a tokenizer, which the server wants and W1 has none of.

Made up: letters for every id, and nothing special among them, so that every token is text and
makes a chunk of a stream, and its cost to detokenise is that of a byte-level BPE.
"""

import json
import string
from itertools import islice, product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPACE = "Ġ"  # byte-level BPE's


def with_tokenizer(base: Path, folder: Path) -> Path:
    """`folder`, with links to the base's files and the tokenizer; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    if not (folder / "tokenizer.json").exists():
        _tokenizer(vocab_of(base)).save_pretrained(folder)
    return folder


def vocab_of(base: Path) -> int:
    return json.loads((base / "config.json").read_text())["vocab_size"]


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    letters = [SPACE, *string.ascii_letters]
    words = (SPACE + "".join(word) for word in product(string.ascii_lowercase, repeat=4))
    tokens = [*letters, *islice(words, max(0, vocab - len(letters)))][:vocab]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)
