"""PiSSA and LoRA-GA: low-rank methods that begin from a part of the base's weight, or its gradient.

Here: both, from PEFT's initialisations. Not here: their other forms (quantised residuals).

As published, what the adapter begins with, s·B₀A₀, is taken out of the base's weight. Here the
weight stays as it is, and every adapted module subtracts s·B₀A₀x from what it gives instead: the
same function, W x + s (B A - B₀ A₀) x. So the base is never changed, "without the adapter" is
really the base (a preference's reference, an evaluation), and what is saved, an ordinary LoRA
[A; A₀], [B, -B₀] of twice the rank (PEFT's conversion), is what was trained, in any dtype.

Sources: PiSSA arXiv:2404.02948 (alpha = r, fast SVD with 16 iterations); LoRA-GA arXiv:2407.05000
(direction ArB2r, stable scale, gamma 16; PEFT's B, unlike its authors', carries the gradient's
singular values too).
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraGAConfig
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from training.methods.family import Batches, Family, Files, Start
from training.methods.lora import Update, detached, lora_config, low_rank_layers, plain_lora
from training.methods.modules import check_rank
from training.methods.peft_model import ADAPTER, unwrap, wrap
from training.plan import AdapterPlan

GRADIENT_BATCHES = 8
"""LoRA-GA's gradient is of so many batches, at most; its authors find few examples enough."""

LORA_GA = LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16)


def _attach_pissa(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    check_rank(base, plan, needed=plan.rank)
    model = wrap(base, lora_config(base, plan))
    for _, layer in low_rank_layers(model):
        weight = layer.get_base_layer().weight
        original = weight.data
        layer.pissa_init(ADAPTER, "pissa_niter_16")
        weight.data = original
        _subtract_initial(layer)
    return model


def _attach_lora_ga(base: PreTrainedModel, plan: AdapterPlan, start: Start) -> PeftModel:
    check_rank(base, plan, needed=2 * plan.rank)
    _estimate_gradients(base, lora_config(base, plan), start.training_batches(plan.method))
    model = wrap(base, lora_config(base, plan))
    for _, layer in low_rank_layers(model):
        weight = layer.get_base_layer().weight
        original = weight.data
        layer.lora_ga_init(ADAPTER, LORA_GA)
        weight.data = original
        _subtract_initial(layer)
    return model


def _estimate_gradients(base: PreTrainedModel, config: LoraConfig, batches: Batches) -> None:
    """Leaves the loss's gradient of every target on its module, where PEFT looks for it."""
    config.lora_ga_config = LORA_GA

    def backward() -> None:
        for batch in islice(batches(), GRADIENT_BATCHES):
            base(**on_device(batch, base.device), use_cache=False).loss.backward()

    # PEFT counts backward passes by hooks, which torch runs with a warning where a module's input
    # has no gradient: those of the first layer.
    base.enable_input_require_grads()
    preprocess_loraga(base, config, backward)
    base.disable_input_require_grads()


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _subtract_initial(layer: Any) -> None:
    """From now on, the layer gives what its base does plus what the adapter has learned."""
    pair = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
    for name, module in zip(("initial_A", "initial_B"), pair, strict=True):
        module.weight.data = module.weight.data.float().contiguous()
        layer.register_buffer(name, detached(module.weight), persistent=False)
    layer.register_forward_hook(_without_initial)


def _without_initial(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if layer.disable_adapters:
        return output
    x = inputs[0].to(layer.initial_A.dtype)  # [..., in]
    initial = linear(linear(x, layer.initial_A), layer.initial_B)  # [..., out]
    return (output - initial * layer.scaling[ADAPTER]).to(output.dtype)


def _export(model: nn.Module, plan: AdapterPlan) -> Files:
    return plain_lora(model, {path: _learned(layer) for path, layer in low_rank_layers(model)})


def _learned(layer: Any) -> Update:
    """[A; A₀] and [B, -B₀]: of twice the rank, at the same scale."""
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return Update(
        torch.cat([a.detach(), layer.initial_A]),
        torch.cat([b.detach(), -layer.initial_B], dim=1),
        layer.scaling[ADAPTER],
    )


def initial_factors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """The buffers that a checkpoint needs besides what is trained."""
    for path, buffer in model.named_buffers():
        if path.endswith((".initial_A", ".initial_B")):
            yield path, buffer


PISSA = Family(_attach_pissa, _export, unwrap)
LORA_GA_FAMILY = Family(_attach_lora_ga, _export, unwrap)
