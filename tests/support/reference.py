"""What each request must answer: transformers + peft alone, one request at a time, greedy.

Nothing of ours is imported here, so nothing of ours can agree with itself. Answers are kept, since
traffic repeats prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy continuation, with the end-of-sequence token if it came.

    `margins` has, for each token, its logit's lead over the second best: a lead within rounding
    would make any comparison of tokens meaningless.
    """

    tokens: tuple[int, ...]
    margins: tuple[float, ...]
    stopped: bool  # by the end-of-sequence token


class Reference:
    """A base and its PEFT folders; answers `(adapter, prompt)` as those libraries do by default.

    Each adapter has its own copy of the base, loaded by peft, so none can leak into another.
    """

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        self._base = base
        self._folders = dict(adapters)
        self._models: dict[str | None, Any] = {}
        eos = GenerationConfig.from_pretrained(base).eos_token_id
        self._eos = eos if isinstance(eos, list) else [eos]
        self._answers: dict[tuple[str | None, tuple[int, ...], int, bool], Answer] = {}

    def answer(
        self,
        adapter: str | None,
        prompt: tuple[int, ...],
        max_tokens: int,
        ignore_eos: bool = False,
    ) -> Answer:
        """The greedy continuation of `prompt` by at most `max_tokens`, alone."""
        key = (adapter, prompt, max_tokens, ignore_eos)
        if key not in self._answers:
            self._answers[key] = self._generate(*key)
        return self._answers[key]

    def _model(self, adapter: str | None) -> Any:
        if adapter not in self._models:
            model = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32)
            model.generation_config.eos_token_id = None  # else generate() brings it back
            if adapter is not None:
                model = PeftModel.from_pretrained(model, str(self._folders[adapter]))
            self._models[adapter] = model.eval()
        return self._models[adapter]

    @torch.inference_mode()
    def _generate(
        self, adapter: str | None, prompt: tuple[int, ...], max_tokens: int, ignore_eos: bool
    ) -> Answer:
        out = self._model(adapter).generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=GenerationConfig(
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=None if ignore_eos else self._eos,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
        best = torch.cat(out.logits).float().topk(2, dim=-1).values  # [tokens, 2]
        tokens = tuple(out.sequences[0, len(prompt) :].tolist())
        return Answer(
            tokens=tokens,
            margins=tuple((best[:, 0] - best[:, 1]).tolist()),
            stopped=not ignore_eos and tokens[-1] in self._eos,
        )
