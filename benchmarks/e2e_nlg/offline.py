"""What transformers + peft answer, one request at a time: what the server is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks.e2e_nlg.prompt import prompt_ids


@dataclass(frozen=True, slots=True)
class Reply:
    """One greedy answer: its text without the end token, and its length in tokens with it."""

    text: str
    tokens: int


class Offline:
    """A base in float32 with one adapter, or none."""

    def __init__(self, base: Path, adapter: Path | None) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._eos = model.generation_config.eos_token_id
        self._model: Any = (
            model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
        )
        self._model.eval()

    def reply(self, mr: str, max_tokens: int) -> Reply:
        """The greedy answer to one mr, alone."""
        prompt = prompt_ids(self._tokenizer, mr)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                generation_config=GenerationConfig(
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    eos_token_id=self._eos,
                    pad_token_id=self._tokenizer.pad_token_id,
                ),
            )
        new: list[int] = out[0, len(prompt) :].tolist()
        return Reply(str(self._tokenizer.decode(new, skip_special_tokens=True)), len(new))

    def replies(self, mrs: Sequence[str], max_tokens: int) -> list[Reply]:
        return [self.reply(mr, max_tokens) for mr in mrs]
