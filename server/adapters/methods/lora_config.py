"""Reads a PEFT LoRA config and pairs it with the tensors; nothing is served from a guess.

Every key is either honoured, inert at inference, or refused by name when it is set. Module
patterns are matched as literal names: a pattern from a config is never evaluated.
Source of the keys and of the scale: peft 0.21, tuners/lora/config.py and layer.py (LoRA,
arXiv:2106.09685; rsLoRA, arXiv:2312.03732).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adapters_store.content import AdapterContent, BaseModel
from adapters_store.errors import InvalidAdapter, UnsupportedAdapter
from server.adapters.slot_rows import SlotLimits

HONOURED = frozenset(
    "peft_type r lora_alpha use_rslora rank_pattern alpha_pattern bias fan_in_fan_out "
    "target_modules exclude_modules layers_to_transform layers_pattern".split()
)
"""Which modules are targeted is read from the tensors' names; the four keys above that say so
too are kept, never evaluated. fan_in_fan_out describes the base's storage, not the update."""

INERT = frozenset(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout init_lora_weights megatron_core loftq_config eva_config corda_config "
    "lora_ga_config qalora_group_size ensure_weight_tying velora_config "
    "monteclora_config runtime_config".split()
)
"""Initialisation and training only: they leave no trace in what is computed at inference."""

REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules saved whole",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on parameters (fused experts)",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "layer_replication": "layer replication",
    "lora_bias": "a bias on lora_B",
    "megatron_config": "Megatron parallel layers",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
}

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract from the base's weights: as saved, such an adapter fits only the
changed base. Source: peft 0.21, tuners/lora/layer.py."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_[AB])\.weight")
_SPECIAL_TENSORS = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "LoRA on an embedding",
    "lora_B.bias": "a bias on lora_B",
    "modules_to_save": "modules saved whole",
    "token_adapter": "trainable tokens",
}
_LITERAL_NAME = re.compile(r"\^?[A-Za-z0-9_.\\]+\$?")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One module's update: x ↦ scale · (x Aᵀ) Bᵀ."""

    name: str  # path in the base
    a: Tensor  # [rank, in]
    b: Tensor  # [out, rank]
    rank: int
    scale: float


def read_lora(content: AdapterContent, base: BaseModel, *, limits: SlotLimits) -> list[LoraModule]:
    """The adapter's updates, sorted by module name, every tensor accounted for.

    Raises InvalidAdapter or UnsupportedAdapter naming the key or tensor, and the remedy.
    """
    config = content.config
    _check_keys(config)
    pairs = _pair_tensors(content.tensors, base)
    _check_targets(config.get("target_modules"), pairs)
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(key, config.get(key) or {}, pairs)
    modules = [_module(name, pairs[name], config, base, limits) for name in sorted(pairs)]
    if not any(module.scale for module in modules):
        raise InvalidAdapter(
            "adapter_config.json: lora_alpha is 0, so this adapter changes nothing; "
            "set the alpha that it was trained with",
            param="lora_alpha",
        )
    if not any(bool(module.b.count_nonzero()) for module in modules):
        raise InvalidAdapter(
            "every lora_B is zero, so this adapter changes nothing: it was saved before training"
        )
    return modules


def _check_keys(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in HONOURED or key in INERT or value in (None, False, [], {}):
            continue
        if key in REFUSED:
            raise UnsupportedAdapter(
                f"adapter_config.json: {key} ({REFUSED[key]}) is not served here; "
                "train without it, or merge the adapter into the base",
                param=key,
            )
        raise UnsupportedAdapter(
            f"adapter_config.json: unknown key {key!r} is set; "
            "an option this server does not know is refused rather than ignored",
            param=key,
        )
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.startswith(CHANGES_BASE):
        raise UnsupportedAdapter(
            f"adapter_config.json: init_lora_weights {initial!r} changed the base it was trained "
            "on; convert it to plain LoRA with save_pretrained("
            "path_initial_model_for_weight_conversion=...)",
            param="init_lora_weights",
        )
    bias = config.get("bias", "none")
    if bias != "none":
        raise UnsupportedAdapter(
            f"adapter_config.json: bias {bias!r} is not served here; train with bias='none'",
            param="bias",
        )
    _positive_int(config, "r")
    _number("lora_alpha", config.get("lora_alpha"))


def _positive_int(config: Mapping[str, Any], key: str) -> None:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise InvalidAdapter(
            f"adapter_config.json: {key} must be a positive integer, not {value!r}", param=key
        )


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InvalidAdapter(
            f"adapter_config.json: {key} must be a finite number, not {value!r}", param=key
        )
    return float(value)


def _pair_tensors(
    tensors: Mapping[str, Tensor], base: BaseModel
) -> dict[str, dict[str, tuple[str, Tensor]]]:
    """Module → {"lora_A": (tensor name, tensor), "lora_B": …}; every tensor is in it."""
    pairs: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        for mark, what in _SPECIAL_TENSORS.items():
            if mark in name:
                raise UnsupportedAdapter(f"tensor {name!r} is {what}, which is not served here")
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise InvalidAdapter(
                f"tensor {name!r} is not named as PEFT names LoRA tensors "
                "(base_model.model.<module>.lora_A.weight); save it with save_pretrained"
            )
        module = match["module"]
        if module not in base.modules:
            raise InvalidAdapter(
                f"tensor {name!r} matches no module of the base {base.name!r} that can be "
                f"adapted; train the adapter on this base (such a module is {_example(base)!r})"
            )
        pairs.setdefault(module, {})[match["part"]] = (name, tensor)
    if not pairs:
        raise InvalidAdapter("the adapter has no tensors, so it would change nothing")
    for module, parts in pairs.items():
        for part, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
            if part not in parts:
                raise InvalidAdapter(
                    f"tensor {parts[other][0]!r} has no {part} beside it; "
                    f"save the adapter again, {module!r} needs both"
                )
    return pairs


def _example(base: BaseModel) -> str:
    return next(iter(base.modules), "none")


def _check_targets(targets: Any, pairs: Mapping[str, Mapping[str, tuple[str, Tensor]]]) -> None:
    """A list of targets must name every adapted module: PEFT leaves the others' tensors out."""
    if not isinstance(targets, list):
        return
    for module, parts in pairs.items():
        if not any(module == target or module.endswith(f".{target}") for target in targets):
            raise InvalidAdapter(
                f"tensor {parts['lora_A'][0]!r} is of a module that target_modules does not name, "
                "so PEFT would leave it out; name it there, or save the adapter without it",
                param="target_modules",
            )


def _check_pattern(key: str, pattern: Any, pairs: Mapping[str, Any]) -> None:
    """Each entry must be a literal module name that some targeted module ends with."""
    if not isinstance(pattern, dict):
        raise InvalidAdapter(f"adapter_config.json: {key} must be an object", param=key)
    for name, value in pattern.items():
        if key == "rank_pattern":
            _positive_int({f"{key}.{name}": value}, f"{key}.{name}")
        else:
            _number(f"{key}.{name}", value)
        if not _LITERAL_NAME.fullmatch(name):
            raise UnsupportedAdapter(
                f"adapter_config.json: {key} entry {name!r} is a pattern; patterns are never "
                "evaluated here, list the modules by name",
                param=key,
            )
        if not any(_names(name, module) for module in pairs):
            raise InvalidAdapter(
                f"adapter_config.json: {key} entry {name!r} names none of the adapted modules",
                param=key,
            )


def _names(entry: str, module: str) -> bool:
    """Whether a literal pattern entry names this module, as PEFT's get_pattern_key matches it."""
    literal = entry.replace("\\.", ".").removesuffix("$")
    if literal.startswith("^"):
        return module == literal[1:]
    return module == literal or module.endswith("." + literal)


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The first entry, in the config's order, that names the module."""
    return next((value for entry, value in pattern.items() if _names(entry, module)), default)


def _module(
    name: str,
    parts: Mapping[str, tuple[str, Tensor]],
    config: Mapping[str, Any],
    base: BaseModel,
    limits: SlotLimits,
) -> LoraModule:
    rank = _by_pattern(config.get("rank_pattern") or {}, name, config["r"])
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, name, config["lora_alpha"]))
    shape = base.modules[name]
    (a_name, a), (b_name, b) = parts["lora_A"], parts["lora_B"]
    for tensor_name, tensor, wanted in (
        (a_name, a, (rank, shape.in_features)),
        (b_name, b, (shape.out_features, rank)),
    ):
        if tuple(tensor.shape) != wanted:
            raise InvalidAdapter(
                f"tensor {tensor_name!r} has shape {list(tensor.shape)}, but the base "
                f"{base.name!r} and rank {rank} need {list(wanted)}; "
                "train the adapter on this base, or correct r in adapter_config.json"
            )
    excess = limits.excess(rank)
    if excess is not None:
        raise InvalidAdapter(f"tensor {a_name!r} has rank {rank}, {excess}")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraModule(name, a, b, rank, scale)
