"""Text to measure forgetting on, drawn from the base itself: what it was, a fine-tune should keep.

Here: sample. The growth of the loss on it is an unbiased estimate of KL(base || fine-tune) a token,
so no data are needed that nobody has; a job may name its own text instead.
"""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from training.tokens import NOT_LEARNED, Tokenized

SEQUENCES, TOKENS = 32, 96
_SEED = 20_260_101  # the same text for every job on a base


@torch.no_grad()
def sample(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[Tokenized]:
    """SEQUENCES of up to TOKENS tokens each, drawn at temperature 1; learned but for the first.

    torch's random state is left as it was.
    """
    start: Any = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id
    if start is None:
        return []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        drawn = model.generate(
            input_ids=torch.full((SEQUENCES, 1), start, device=model.device),
            attention_mask=torch.ones((SEQUENCES, 1), dtype=torch.int64, device=model.device),
            max_new_tokens=TOKENS,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    told = model.generation_config.eos_token_id
    ends: set[int] = {told} if isinstance(told, int) else set(told or ())
    return [row for row in (_row(ids, ends) for ids in drawn.tolist()) if row.learned]


def _row(ids: list[int], ends: set[int]) -> Tokenized:
    """Up to the first end after the start; what follows is padding."""
    length = next((at + 1 for at, token in enumerate(ids) if at and token in ends), len(ids))
    return Tokenized(tuple(ids[:length]), (NOT_LEARNED, *ids[1:length]))
