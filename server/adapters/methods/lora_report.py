"""What a LoRA does to a base, in figures that tell at a glance whether it took effect.

Here: lora_report. Not here: whether the adapter fits.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from adapters_store.content import BaseModel
from server.adapters.methods.lora_config import LoraModule

_LAYER = re.compile(r"\.(\d+)\.")


def lora_report(modules: Sequence[LoraModule], base: BaseModel) -> dict[str, Any]:
    """Plain JSON, a line for each layer of the base that is touched.

    `delta_norm` is the Frobenius norm of the layer's updates, scale · B A, `relative` that norm
    over the norm of the very weights that they are added to (null where those are not known).
    A trained adapter lies between a thousandth and a half; zero changes nothing.
    """
    touched = {module.name for module in modules}
    deltas: defaultdict[str, float] = defaultdict(float)  # squared norms, by layer
    weights: defaultdict[str, float] = defaultdict(float)
    for module in modules:
        layer = _layer(module.name)
        deltas[layer] += _delta_norm(module) ** 2
        weights[layer] += base.norms.get(module.name, math.nan) ** 2
    return {
        "modules": len(modules),
        "modules_of_base": len(base.modules),
        "untouched": sorted({_leaf(name) for name in base.modules} - {_leaf(n) for n in touched}),
        "ranks": sorted({module.rank for module in modules}),
        "scales": sorted({module.scale for module in modules}),
        "layers": [
            {
                "layer": int(layer) if layer.isdecimal() else layer,
                "delta_norm": _short(math.sqrt(deltas[layer])),
                "relative": _short(math.sqrt(deltas[layer] / weights[layer]))
                if weights[layer] > 0
                else None,
            }
            for layer in sorted(deltas, key=_place)
        ],
    }


def _delta_norm(module: LoraModule) -> float:
    """‖scale · B A‖, from the rank × rank products A Aᵀ and Bᵀ B: B A itself is never made."""
    a, b = module.a.to(torch.float32), module.b.to(torch.float32)  # [rank, in], [out, rank]
    squared = float(((a @ a.T).double() * (b.T @ b).double()).sum())
    return abs(module.scale) * math.sqrt(max(squared, 0.0))


def _layer(name: str) -> str:
    found = _LAYER.search(name)
    return found[1] if found else "other"


def _place(layer: str) -> tuple[bool, int, str]:
    return (True, 0, layer) if not layer.isdecimal() else (False, int(layer), layer)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _short(value: float) -> float:
    """Four digits are enough to look at."""
    return float(f"{value:.4g}")
