"""Random PEFT LoRA adapters that change a base audibly, made and saved by peft itself.

Here: a table of recipes, so unlike one another in rank, alpha, targets and options that a slot
laid out for one cannot serve another by luck. Not here: anything of ours; what these folders
mean is peft's to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.families import Family

A, B = "lora_A.default.weight", "lora_B.default.weight"
Part = Literal["attention", "mlp", "linears", "ends"]  # which of a family's linears


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter's shape. `patterns` maps a position among the targets to (rank, alpha)."""

    name: str
    rank: int
    alpha: int
    part: Part = "linears"
    rslora: bool = False
    layers: tuple[int, ...] | None = None  # layers_to_transform
    patterns: Mapping[int, tuple[int, int]] = field(default_factory=dict)


RECIPES = (
    Recipe("all", rank=8, alpha=16),
    Recipe("attention-rs", rank=6, alpha=5, part="attention", rslora=True),
    Recipe("patterned", rank=4, alpha=8, patterns={0: (13, 40), 1: (2, 3)}),
    Recipe("one-layer", rank=12, alpha=36, layers=(1,)),
    Recipe("ends", rank=3, alpha=9, part="ends"),
    Recipe("wide", rank=24, alpha=24),
    Recipe("mlp", rank=1, alpha=4, part="mlp"),
    Recipe("two-layers-rs", rank=5, alpha=7, rslora=True, layers=(0, 2), patterns={0: (9, 6)}),
)


def make_adapter(
    base: Path, family: Family, recipe: Recipe, folder: Path, *, seed: int, gain: float = 1.0
) -> Path:
    """Saves a random adapter of this recipe for the base in `base`. Returns `folder`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return save_random_lora(model, lora_config(family, recipe), folder, seed=seed, gain=gain)


def save_random_lora(
    model: PreTrainedModel, config: LoraConfig, folder: Path, *, seed: int, gain: float = 1.0
) -> Path:
    """Draws A and B, wraps `model` with peft, saves, and unwraps it again.

    Each module's delta is about `gain` times as large as its input would give a random matrix
    of gain 1, whatever rank and alpha are, so that every adapter changes the tokens.
    """
    peft_model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in peft_model.modules():
            if not isinstance(module, LoraLayer):
                continue
            a, b = module.get_parameter(A), module.get_parameter(B)
            a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
            scale = gain / (a.shape[0] ** 0.5 * module.scaling["default"])
            b.copy_(torch.randn(b.shape, generator=generator) * scale)
    peft_model.save_pretrained(str(folder))
    peft_model.unload()
    return folder


def lora_config(family: Family, recipe: Recipe) -> LoraConfig:
    """peft's config of a recipe for this family."""
    targets = _targets(family, recipe.part)
    patterns = {targets[at]: pair for at, pair in recipe.patterns.items() if at < len(targets)}
    options: dict[str, Any] = {"layers_to_transform": list(recipe.layers)} if recipe.layers else {}
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(targets),
        use_rslora=recipe.rslora,
        rank_pattern={name: rank for name, (rank, _) in patterns.items()},
        alpha_pattern={name: alpha for name, (_, alpha) in patterns.items()},
        fan_in_fan_out=family.conv1d,
        task_type="CAUSAL_LM",
        **options,
    )


def _targets(family: Family, part: Part) -> tuple[str, ...]:
    """The leaf names a part means; a family without MLP linears gives its attention's last."""
    if part == "ends":
        return (family.linears[0], family.linears[-1])
    if part == "mlp":
        return family.mlp or family.attention[-1:]
    return family.attention if part == "attention" else family.linears
