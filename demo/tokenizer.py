"""The demo's tokenizer: byte-level BPE learnt from the demo's own text, with a chat template.

Here: how text is cut, learning the merges, the chat template. Not here: what the text says.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.tasks import TOPICS
from demo.text import documents

VOCAB_SIZE = 1024
END, PAD = "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIALS = (END, PAD, SYSTEM, USER, ASSISTANT)

# A digit stands alone, so numbers and dates are spelt out. A capitalised word does not take the
# space before it, so a name is the same tokens after a space and after a quote: that makes names
# easy to copy. Other words and signs take one space along, as in GPT-2.
_PIECES = r"\p{N}|\p{Lu}+\p{Ll}*| ?\p{Ll}+| ?[^\s\p{Lu}\p{Ll}\p{N}]+|\s+(?!\S)|\s+"

# Each message is <|role|>text<|end|>; the answer begins after <|assistant|>.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def learn_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens, all 256 bytes and the specials among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def tokenizer_texts(seed: int, count: int) -> Iterator[str]:
    """The text of `count` documents and of as many training answers, to learn the merges from."""
    rng = Random(f"tokenizer {seed}")
    for document in islice(documents(rng), count):
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)
        yield rng.choice(TOPICS).train(rng).answer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer's files, with the class named as transformers of any version knows it."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for how_it_was_loaded in ("is_local", "local_files_only"):
        config.pop(how_it_was_loaded, None)
    path.write_text(json.dumps(config, indent=2) + "\n")
