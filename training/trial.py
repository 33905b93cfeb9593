"""The new adapter beside the base and the version that is served now, on the same rows.

Here: compare, Comparison, opened, tuned. Each is loaded as a server would load it, from its files
onto an unspoilt base: what is judged is what will be served.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from training.base import BaseFolder, load_model
from training.evaluation import Scores, View, score
from training.methods.bottleneck import PEFT_TYPE, load_bottlenecks, without_bottlenecks
from training.tokens import Tokenized

CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Comparison:
    base: Scores | None  # None: there is no such thing, as of classes
    current: Scores | None  # None: the name means nothing yet
    new: Scores

    @property
    def forgetting(self) -> float | None:
        """How much the loss on general text has grown, in nats a token."""
        if self.base is None or self.new.general_loss is None or self.base.general_loss is None:
            return None
        return self.new.general_loss - self.base.general_loss

    def as_json(self) -> dict[str, Any]:
        return {
            "base": None if self.base is None else self.base.as_json(),
            "current": None if self.current is None else self.current.as_json(),
            "new": self.new.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Questions:
    """What all are scored on."""

    held_out: Sequence[Tokenized]
    general: Sequence[Tokenized]
    answered: int  # so many of held_out, the first ones


def compare(
    base: BaseFolder,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    new: Path,
    current: Path | None,
) -> Comparison:
    """`new` and `current` are PEFT folders. Raises OSError, ValueError."""
    own, plain = opened(base, new)
    scores = Comparison(
        base=_scored(plain, tokenizer, questions, None),
        current=None,
        new=_scored(own, tokenizer, questions, plain),
    )
    if current is None:
        return scores
    del own, plain  # their memory is wanted
    served, plain = opened(base, current)
    return replace(scores, current=_scored(served, tokenizer, questions, plain))


def opened(base: BaseFolder, folder: Path) -> tuple[View, View]:
    """What was saved in `folder`, and the base without it."""
    own = tuned(base, folder)
    model = own.model
    if isinstance(model, PeftModel):
        return own, View(model, model.disable_adapter)
    if (folder / CONFIG).exists():
        return own, View(model, partial(without_bottlenecks, model))
    return own, View(load_model(base))


def tuned(base: BaseFolder, folder: Path) -> View:
    """What was saved in `folder`. Raises OSError, ValueError."""
    config = folder / CONFIG
    if not config.exists():  # a whole model: what full fine-tuning leaves
        return View(load_model(BaseFolder(base.name, folder, base.device)))
    if json.loads(config.read_text())["peft_type"] == PEFT_TYPE:
        return View(load_bottlenecks(load_model(base), folder))
    return View(PeftModel.from_pretrained(load_model(base), str(folder)).eval())


def _scored(
    view: View,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    base: View | None,
) -> Scores:
    return score(
        view,
        tokenizer,
        questions.held_out,
        general=questions.general,
        answered=questions.answered,
        base=base,
    )
