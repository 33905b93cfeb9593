"""Whole decoder layers in one call of the native library: Python's and torch's part of a step.

A layer is described by the names that Llama's family shares (Llama, Mistral, Qwen 2 and 3, Phi-3,
OLMo 2, Gemma 2 and 3 among them) and accepted by what it does: a paged step is run through the
model's own layers, and a native layer must give what its own gave and cache what it cached, before
it takes its place. Anything else keeps its own forward, part by part as fused.py and linears.py
have it.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.attention import AttentionFacts, PagedStep
from server.engine.base import LoadedBase
from server.engine.fused import RmsNorm, activation_of, close, rms_norm_of
from server.engine.kv_cache import KVCache
from server.engine.linears import LinearGroup
from server.engine.messages import SamplingParams
from server.engine.plan import Chunk, build_plan
from server.engine.sequence import Sequence
from server.kernels.cpu.native import Group, Hook, Layer, NativeKernels, Norm
from server.kernels.cpu.packed_linear import PackedLinear

CHECK_BLOCK = 16
CHECK_CHUNKS = ((17, 1), (39, 1), (0, 5), (30, 18))
"""(start, tokens) of the chunks that a layer is tried with, over a cache of random numbers."""


@dataclass(frozen=True, slots=True)
class NativeGroup:
    """Modules that read one input, packed, and what adapters add to them."""

    linear: PackedLinear
    hooks: tuple[Hook, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """A decoder layer, taken apart."""

    index: int
    attention: AttentionFacts
    heads: int
    activation: int
    norms: dict[str, RmsNorm]  # by the names that native.Layer has for them
    groups: dict[str, NativeGroup]  # likewise


class NativeLayer:
    """Stands in for one decoder layer's forward wherever a paged step is given to it."""

    def __init__(self, parts: Parts, kernels: NativeKernels, own: Callable[..., Tensor]) -> None:
        self._kernels = kernels
        self._own = own
        self.index = parts.index
        self._cache: KVCache | None = None
        self._kept: list[Any] = []  # what the job points to
        self.job = self._layer(parts)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states [1, rows, width], written over with the layer's output."""
        paged: PagedStep | None = kwargs.get("paged")
        if paged is None or paged.native is None:
            return self._own(hidden_states, *args, **kwargs)
        if paged.cache is not self._cache:
            self._cache = paged.cache
            keys, values = paged.cache.tensors(self.index)
            self.job.keys, self.job.values = keys.data_ptr(), values.data_ptr()
        cos, sin = kwargs["position_embeddings"]
        step = paged.native
        step.rotary, step.cos, step.sin = cos.shape[-1], cos.data_ptr(), sin.data_ptr()
        self._kernels.layer(ctypes.byref(self.job), ctypes.byref(step), hidden_states.data_ptr())
        return hidden_states

    def _layer(self, parts: Parts) -> Layer:
        attention, shape = parts.attention, parts.attention.shape
        sinks = None if attention.sinks is None else attention.sinks.float().contiguous()
        self._kept.append(sinks)
        query = parts.norms.get("query_norm")
        whole = query is not None and query.weight.shape[0] != shape.key_dim
        return Layer(
            dtype=parts.groups["qkv"].linear.job.dtype,
            activation=parts.activation,
            norm_whole_rows=whole,
            heads=parts.heads,
            kv_heads=shape.kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
            window=attention.window or 0,
            scale=attention.scale,
            softcap=attention.softcap or 0.0,
            sinks=None if sinks is None else sinks.data_ptr(),
            **{place: self._norm(norm) for place, norm in parts.norms.items()},
            **{name: self._group(group) for name, group in parts.groups.items()},
        )

    def _norm(self, norm: RmsNorm) -> Norm:
        self._kept.append(norm.weight)
        return Norm(norm.weight.data_ptr(), norm.eps, norm.plus_one)

    def _group(self, group: NativeGroup) -> Group:
        hooks = (Hook * max(1, len(group.hooks)))(*group.hooks)
        self._kept += [hooks, group]
        return Group(group.linear.job, len(group.hooks), hooks)


def attach(base: LoadedBase) -> int:
    """Replaces the forward of every layer that a native one can stand for; says how many.

    Called when all adapter kinds are bound: their hooks become part of the layers.
    """
    if base.kernels is None:
        return 0
    known = {group.modules: group for group in base.linears}
    candidates: dict[nn.Module, NativeLayer] = {}
    for module in base.model.modules():
        parts = _parts(module, base.attention, known, base.kernels)
        if parts is not None:
            candidates[module] = NativeLayer(parts, base.kernels, module.forward)
    accepted = _accepted(base, candidates) if candidates else []
    for module in accepted:
        module.forward = candidates[module].forward
    return len(accepted)


def _parts(
    module: Any,
    attentions: dict[int, AttentionFacts],
    known: dict[tuple[nn.Module, ...], LinearGroup],
    kernels: NativeKernels,
) -> Parts | None:
    """A layer's parts by the names of Llama's family; None where one is missing or unknown."""
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    facts = attentions.get(getattr(attention, "layer_idx", -1))
    function = getattr(mlp, "act_fn", getattr(mlp, "activation_fn", None))
    if facts is None or function is None:
        return None
    activation = activation_of(function)
    groups = {
        "qkv": _group(known, attention, "q_proj k_proj v_proj", "qkv_proj"),
        "o": _group(known, attention, "o_proj"),
        "gate_up": _group(known, mlp, "gate_proj up_proj", "gate_up_proj"),
        "down": _group(known, mlp, "down_proj"),
    }
    native = {name: group for name, group in groups.items() if group is not None}
    norms = _norms(module, attention, kernels)
    if activation is None or norms is None or len(native) < len(groups):
        return None
    shape, inner = facts.shape, native["down"].linear.job.in_features
    heads = native["o"].linear.job.in_features // shape.value_dim
    keyed = (heads + shape.kv_heads) * shape.key_dim
    fits = (
        native["qkv"].linear.job.out_features == keyed + shape.kv_heads * shape.value_dim
        and native["gate_up"].linear.job.out_features == 2 * inner
    )
    index: int = attention.layer_idx  # type: ignore[union-attr]
    return Parts(index, facts, heads, activation, norms, native) if fits else None


def _group(
    known: dict[tuple[nn.Module, ...], LinearGroup], owner: Any, *forms: str
) -> NativeGroup | None:
    """The group that is exactly the modules of one of `forms`, packed and with native hooks."""
    for names in forms:
        modules = tuple(getattr(owner, name, None) for name in names.split())
        group = known.get(modules)  # type: ignore[arg-type]
        if group is not None and group.packed is not None and None not in group.hooks:
            return NativeGroup(group.packed, tuple(group.hooks))
    return None


def _norms(module: Any, attention: Any, kernels: NativeKernels) -> dict[str, RmsNorm] | None:
    """Where a layer's norms stand: Gemma's, Llama's or OLMo 2's places. None if one is unknown."""
    if hasattr(module, "pre_feedforward_layernorm"):
        places = {
            "before_attention": "input_layernorm",
            "after_attention": "post_attention_layernorm",
            "before_mlp": "pre_feedforward_layernorm",
            "after_mlp": "post_feedforward_layernorm",
        }
    elif hasattr(module, "input_layernorm"):
        places = {
            "before_attention": "input_layernorm",
            "before_mlp": "post_attention_layernorm",
        }
    else:
        places = {
            "after_attention": "post_attention_layernorm",
            "after_mlp": "post_feedforward_layernorm",
        }
    modules = {place: getattr(module, name, None) for place, name in places.items()}
    if hasattr(attention, "q_norm"):
        modules |= {"query_norm": attention.q_norm, "key_norm": getattr(attention, "k_norm", None)}
    found: dict[str, RmsNorm] = {}
    for place, norm_module in modules.items():
        norm = None if norm_module is None else rms_norm_of(norm_module, kernels)
        if norm is None:
            return None
        found[place] = norm
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a layer's own forward was given and gave in the trial, and then had cached."""

    hidden: Tensor
    kwargs: dict[str, Any]
    output: Tensor
    keys: Tensor
    values: Tensor


@torch.inference_mode()
def _accepted(base: LoadedBase, candidates: dict[nn.Module, NativeLayer]) -> list[nn.Module]:
    """Those that give and cache what the layer itself does, but for rounding."""
    paged = _trial(base)
    hidden: dict[nn.Module, tuple[Tensor, dict[str, Any]]] = {}
    outputs: dict[nn.Module, Any] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args:
            hidden[module] = args[0].clone(), kwargs

    def after(module: nn.Module, args: Any, output: Any) -> None:
        outputs[module] = output.clone() if isinstance(output, Tensor) else None

    hooks = [m.register_forward_pre_hook(before, with_kwargs=True) for m in candidates]
    hooks += [m.register_forward_hook(after) for m in candidates]
    try:
        plan = paged.plan
        base.model(
            input_ids=plan.token_ids.unsqueeze(0),
            position_ids=plan.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=plan.sample_rows,
            paged=paged,
        )
    finally:
        for hook in hooks:
            hook.remove()
    accepted = []
    for module, layer in candidates.items():
        if module not in hidden or outputs.get(module) is None:
            continue
        x, kwargs = hidden[module]
        rotation = kwargs.get("position_embeddings")
        if rotation is None or any(part.dtype != base.dtype for part in rotation):
            continue
        caches = paged.cache.tensors(layer.index)
        kept = [cache.clone() for cache in caches]
        for cache in caches:
            cache.flatten(0, 1)[plan.write_places] = 0
        given = layer.forward(x, **kwargs)
        rows = slice(0, plan.tokens)
        pairs = [(given[:, rows], outputs[module][:, rows]), *zip(caches, kept, strict=True)]
        if all(close(ours, own) for ours, own in pairs):
            accepted.append(module)
    return accepted


def _trial(base: LoadedBase) -> PagedStep:
    """A step of a few sequences, as if all that lies before its tokens had been cached."""
    blocks_each = 1 + max(start + count for start, count in CHECK_CHUNKS) // CHECK_BLOCK
    cache = KVCache(
        base.layers,
        blocks=1 + blocks_each * len(CHECK_CHUNKS),
        block_size=CHECK_BLOCK,
        dtype=base.dtype,
        device=base.device,
    )
    generator = torch.Generator().manual_seed(0)
    for layer in base.layers:
        for tensor in cache.tensors(layer):
            tensor[1:] = torch.randn(tensor[1:].shape, generator=generator)
    chunks = []
    for number, (start, count) in enumerate(CHECK_CHUNKS):
        tokens = [(7 * at + number) % base.vocab_size for at in range(start + count)]
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        sequence = Sequence("trial", number, len(tokens), tokens, sampling, None, 0, 0.0)
        first = 1 + number * blocks_each
        sequence.block_table = list(range(first, first + blocks_each))
        chunks.append(Chunk(sequence, start, count))
    return PagedStep(build_plan(chunks, [], CHECK_BLOCK, base.device), cache, base.kernels)
