"""Prompt tuning, p-tuning and prefix tuning: virtual tokens before the text, and no weight changed.

Here: their configs and first values. Not here: the tokens' way into the model (PEFT's).

Prompt tuning (arXiv:2104.08691, section 3.2) begins with embeddings of the vocabulary. P-tuning
(arXiv:2103.10385) trains an encoder (PEFT's MLP) besides its embeddings; what is saved is what
came out of it. Prefix tuning (arXiv:2101.00190) trains keys and values; they begin with those of
real words (its section 7.4), the first of the training data, without the reparametrisation that
steadies a random start.
"""

from collections.abc import Mapping

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.methods.family import Family, Files, Start
from training.methods.fields import checkpointed_prefix
from training.methods.peft_model import peft_files, unwrap, wrap
from training.plan import AdapterPlan


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    if plan.method == "prefix-tuning":
        return _attach_prefix(base, plan, start)
    return wrap(base, _config(plan))


def _config(plan: AdapterPlan) -> PeftConfig:
    shared = {"task_type": "CAUSAL_LM", "num_virtual_tokens": plan.virtual_tokens}
    if plan.method == "prompt-tuning":
        return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shared)
    if plan.method == "p-tuning":
        return PromptEncoderConfig(**shared)
    return PrefixTuningConfig(**shared)


def _attach_prefix(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise checkpointed_prefix()
    words = _words(base, plan.virtual_tokens, start).to(base.device)
    training = base.training
    with torch.no_grad():
        cache = base.eval()(input_ids=words[None], use_cache=True).past_key_values
    base.train(training)
    model = wrap(base, _config(plan))
    initialize_kv_prefix_from_past_key_values(model, past_key_values=cache)
    return model


def _words(base: PreTrainedModel, count: int, start: Start) -> Tensor:
    """[count] token ids: the training data's first, then random ones."""
    words = torch.randint(base.config.get_text_config().vocab_size, (count,))
    if start.batches is not None:
        first = next(iter(start.batches()), None)
        if first is not None:
            known = _text(first)[:count]
            words[: len(known)] = known
    return words


def _text(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["input_ids"][batch["attention_mask"].bool()].cpu()


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    return peft_files(model)


SOFT_PROMPT = Family(_attach, _export, unwrap)
