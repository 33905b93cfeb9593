"""Which parameters are trained at which rate, and which decay.

Here: optimizer_groups. Not here: the schedule, the optimizer itself.
"""

from typing import Any

from torch import nn

from training.plan import AdapterPlan

LORA_PLUS_RATIO = 16.0
"""B's rate over A's: 2^4, LoRA+'s default (arXiv:2402.12354)."""


def optimizer_groups(
    model: nn.Module, plan: AdapterPlan, *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """For torch.optim.AdamW: {params, lr, weight_decay}, none empty; every trained one once.

    What scales or shifts (biases, norms, DoRA's magnitudes, IA3's factors) does not decay: zero is
    not where it does nothing.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        faster = plan.method == "lora+" and ".lora_B." in name
        rate = learning_rate * (LORA_PLUS_RATIO if faster else 1.0)
        scales = parameter.ndim < 2 or name.endswith("bias") or ".ia3_l." in name
        groups.setdefault((rate, 0.0 if scales else weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
