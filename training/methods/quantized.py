"""QLoRA: LoRA beside a base that is held in 4 bits.

Here: how such a base is loaded, what is done to it before training. Not here: the LoRA.

Source: arXiv:2305.14314: NormalFloat of 4 bits, its constants quantised too, computed in bfloat16.
bitsandbytes is an extra of its own: it brings kernels for particular accelerators.
"""

import importlib.util

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from adapters_store.errors import InvalidRequest
from training.methods.family import Family, Files, Start
from training.methods.lora import lora_config
from training.methods.peft_model import peft_files, unwrap, wrap
from training.plan import AdapterPlan


def quantization_config(plan: AdapterPlan) -> BitsAndBytesConfig | None:
    """For from_pretrained, of the base that this plan is attached to; None: none is needed.

    Raises InvalidRequest if bitsandbytes is not installed.
    """
    if plan.method != "qlora":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InvalidRequest(
            "adapterd.peft.method: qlora needs bitsandbytes, which is not installed where jobs "
            "are worked on; pip install adapterd[qlora] there, or use lora",
            param="adapterd.peft.method",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    if not getattr(base, "is_loaded_in_4bit", False):
        raise ValueError("qlora: load the base with quantization_config(plan)")
    # Checkpointing is the training loop's choice; what is not in 4 bits is computed in float32.
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    return wrap(prepared, lora_config(base, plan))


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    return peft_files(model)


QLORA = Family(_attach, _export, unwrap)
