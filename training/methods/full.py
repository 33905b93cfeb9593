"""The yardstick: every weight of the base is trained, and all of it is saved.

Here: that. Not here: an adapter; what comes of this is a base, which is never published as one.
"""

from torch import nn
from transformers import PreTrainedModel

from training.methods.family import Family, Files, Start
from training.plan import AdapterPlan


def _attach(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PreTrainedModel:
    return base.float().requires_grad_(True)


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    raise AssertionError("a full fine-tune has no adapter's files")


def _detach(model: nn.Module) -> PreTrainedModel:
    """There is nothing to take off: the base is what was trained."""
    assert isinstance(model, PreTrainedModel)
    return model


FULL = Family(_attach, _export, _detach)
