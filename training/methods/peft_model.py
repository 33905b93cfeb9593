"""What all of PEFT's tuners have in common: wrapping a base, reading what is to be saved, undoing.

Here: wrap, peft_files, unwrap. Not here: any method's config.
"""

import copy
import warnings
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.methods.family import Files

ADAPTER = "default"  # PEFT's name for the only one


def wrap(base: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """The base with the adapter of this config, which alone is trained, in float32."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for it by the name that it had before
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            _in_float32(module)
        elif isinstance(module, TrainableTokensWrapper) and _unbiased(module.original_module):
            # trl's loss asks a head for it, and PEFT 0.21 does not pass it on.
            module.register_buffer("bias", None, persistent=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _unbiased(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is None


def _in_float32(wrapper: ModulesToSaveWrapper) -> None:
    """A module that is trained whole is a float32 copy, in a base of another dtype."""
    copied = wrapper.modules_to_save[ADAPTER]
    dtype = next(copied.parameters()).dtype
    if dtype == torch.float32:
        return

    def widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.float() if _floating(one) else one for one in inputs)

    def narrow(_: nn.Module, __: Any, output: Any) -> Any:
        return output.to(dtype) if _floating(output) else output

    copied.register_forward_pre_hook(widen)
    copied.register_forward_hook(narrow)


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def peft_files(model: nn.Module) -> Files:
    """As PEFT would save it."""
    assert isinstance(model, PeftModel)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    config.inference_mode = True
    # False: PEFT would look the base up by name to see whether its vocabulary has grown.
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return Files(tensors, config.to_dict())


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The base, with its own modules."""
    assert isinstance(model, PeftModel)
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    if model.active_peft_config.is_prompt_learning:
        return base
    for path, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):  # unload() would leave the trained copy
            base.set_submodule(path, module.original_module)
    assert isinstance(model.base_model, BaseTuner)
    model.base_model.unload()
    return base
