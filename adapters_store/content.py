"""An adapter as data: its config, its tensors, and the base they must fit. No I/O here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A module of the base that low-rank updates can target."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What an adapter must fit.

    `modules` maps each targetable module's path within the causal-LM model, such as
    `model.layers.0.self_attn.q_proj`, to its shape. `digest` is of the base's files.
    """

    name: str
    digest: str
    architecture: str
    modules: Mapping[str, LinearShape]
    norms: Mapping[str, float] = field(default_factory=dict)  # Frobenius, of each one's weight


@dataclass(frozen=True, slots=True)
class AdapterContent:
    """One adapter's immutable content. Tensors may be memory-mapped: treat them as read-only."""

    digest: str  # 64 lower-case hex digits: sha256 over canonical config and tensors
    config: Mapping[str, Any]  # adapter_config.json, as parsed
    tensors: Mapping[str, Tensor]  # adapter_model.safetensors, names as PEFT writes them


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a check of an adapter against the base found; kept in the catalog with the version."""

    kind: str  # "lora"
    rank: int  # the largest of its modules' ranks
    target_modules: tuple[str, ...]  # leaf names, sorted: ("k_proj", "q_proj")
    bytes: int  # of its tensors
    report: Mapping[str, Any] = field(default_factory=dict)  # JSON-able load report


class AdapterSource(Protocol):
    """Yields checked versions by digest; all the engine knows of a store."""

    def read(self, digest: str) -> AdapterContent:
        """Blocking; called from loader threads.

        Raises AdapterNotFound if no such version rests here, StoreCorrupt if its bytes changed,
        Unavailable if the place where it rests cannot be reached now.
        """
        ...


Check = Callable[[AdapterContent], AdapterFacts]
"""Raises InvalidAdapter, naming tensor and remedy, when the content does not fit the base."""
