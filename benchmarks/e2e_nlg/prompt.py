"""How a meaning representation is asked: one user message, through the base's chat template."""

from transformers import PreTrainedTokenizerBase


def message(mr: str) -> dict[str, str]:
    """The chat message of one request; the same in training, over HTTP and offline."""
    return {"role": "user", "content": f"Describe: {mr}"}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, mr: str) -> list[int]:
    """Token ids up to where the answer begins."""
    text = tokenizer.apply_chat_template([message(mr)], tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(str(text), add_special_tokens=False)
