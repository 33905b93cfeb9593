"""Loads the frozen base and finds out what it is, by running it once rather than by its name.

What is asked of an architecture: attention through transformers' AttentionInterface, once per
layer, over keys and values of one token each. Whether it holds is seen in a probe of a few
tokens, and the paged result is compared with the model's own, before anything is served.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from adapters_store.content import LinearShape
from adapters_store.errors import EngineStartFailed
from server.engine.attention import PAGED_ATTENTION, AttentionFacts, refuse_unknown, register
from server.engine.fused import fuse
from server.engine.kv_cache import LayerShape
from server.engine.linears import LinearGroup, pack_head
from server.engine.messages import EngineConfig, LoadProgress
from server.kernels.cpu.native import DTYPES, NativeKernels, load_native

PROBE_ATTENTION = "adapterd_probe"
PROBE_TOKENS = 5
SERVED_LAYERS = {"full_attention", "sliding_attention", "dense", "sparse"}
POSITION_DEPENDENT_ROPE = {"dynamic", "longrope"}
"""Their frequencies change with the length of the longest sequence in the batch: up to the
original length they do not, and only so far is a request independent of its batch mates."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """The base, and what the probe saw."""

    model: nn.Module
    architecture: str
    dtype: torch.dtype
    device: torch.device
    vocab_size: int
    max_positions: int
    eos_token_ids: frozenset[int]
    attention: dict[int, AttentionFacts]
    linears: tuple[LinearGroup, ...]  # all modules that adapters can target
    kernels: NativeKernels | None  # what the model's own parts run on; None: torch alone
    parameters: int
    norms: dict[str, float]  # Frobenius, of the weight of each module that adapters can target

    @property
    def layers(self) -> dict[int, LayerShape]:
        """What each layer keeps per token."""
        return {layer: facts.shape for layer, facts in self.attention.items()}

    @property
    def pads_rows(self) -> bool:
        """Whether steps are better of few sizes: some matmul is torch's (row_buckets.py)."""
        return any(group.packed is None for group in self.linears)

    @property
    def shapes(self) -> dict[str, LinearShape]:
        """Of every module that adapters can target, by name."""
        return {
            name: shape
            for group in self.linears
            for name, shape in zip(group.names, group.shapes, strict=True)
        }


def load_base(
    folder: Path, config: EngineConfig, progress: Callable[[LoadProgress], None]
) -> LoadedBase:
    """Loads `folder` as a causal LM with paged attention.

    Raises EngineStartFailed that names the architecture and the part that cannot be served.
    """
    register()
    AttentionInterface.register(PROBE_ATTENTION, _probe_attention)
    transformers_logging.disable_progress_bar()
    hf_config = _config(folder)
    architecture = (hf_config.architectures or [type(hf_config).__name__])[0]
    device = _device(config.device)
    dtype = _dtype(config.dtype, hf_config, device)
    kernels = _kernels(config, device, dtype)
    quantize = _quantize(config, kernels, device, dtype)
    progress(LoadProgress("weights", 0, 1))
    model = _model(folder, hf_config, dtype, architecture).to(device).eval().requires_grad_(False)
    progress(LoadProgress("weights", 1, 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    attention, groups = _probe(model, architecture)
    norms = {name: _norm(module) for group in groups for name, module in group.items()}
    model.set_attn_implementation(PAGED_ATTENTION)
    packing = None if _torch_multiplies_faster(dtype) and not quantize else kernels
    linears = tuple(LinearGroup(group, packing, quantize=quantize) for group in groups)
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        pack_head(head, packing, quantize=quantize)
    if kernels is not None:
        fuse(model, kernels)
    return LoadedBase(
        model=model,
        architecture=architecture,
        dtype=dtype,
        device=device,
        vocab_size=model.get_input_embeddings().num_embeddings,
        max_positions=_max_positions(hf_config),
        eos_token_ids=_eos(folder, hf_config),
        attention=attention,
        linears=linears,
        kernels=kernels,
        parameters=parameters,
        norms=norms,
    )


def _norm(module: nn.Module) -> float:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return float(torch.linalg.vector_norm(weight, dtype=torch.float32))


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise EngineStartFailed(f"{folder}: config.json cannot be used: {error}") from error
    name = (config.architectures or [config.model_type])[0]
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise EngineStartFailed(f"{name} is no decoder-only language model; serve one that is")
    text = config.get_text_config()
    odd = set(getattr(text, "layer_types", None) or ()) - SERVED_LAYERS
    if odd:
        raise EngineStartFailed(
            f"{name} has layers of type {', '.join(sorted(odd))}; served are full and "
            "sliding-window attention"
        )
    return config


def _model(folder: Path, config: Any, dtype: torch.dtype, architecture: str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=PROBE_ATTENTION,
            use_safetensors=True,
            local_files_only=True,
        )
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise EngineStartFailed(f"{architecture} cannot be loaded: {error}") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EngineStartFailed(f"--device {name} cannot be used: {error}") from error
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton launches its kernels on the current one
    return device


def _dtype(name: str, config: Any, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    stored = config.get_text_config().dtype or torch.float32
    if device.type == "cpu" and stored != torch.float32:
        # Half precision without the instructions for it is slower than float32, and float16
        # has none on CPUs.
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast and stored == torch.bfloat16 else torch.float32
    return stored


def _max_positions(config: Any) -> int:
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    longest = text.max_position_embeddings
    if rope.get("rope_type") in POSITION_DEPENDENT_ROPE:
        return min(longest, rope.get("original_max_position_embeddings") or longest)
    return longest


def _eos(folder: Path, config: Any) -> frozenset[int]:
    try:
        eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        eos = config.get_text_config().eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


def _kernels(
    config: EngineConfig, device: torch.device, dtype: torch.dtype
) -> NativeKernels | None:
    if config.kernels == "torch" or device.type != "cpu" or dtype not in DTYPES:
        return None
    return next(iter(load_native()), None)


def _torch_multiplies_faster(dtype: torch.dtype) -> bool:
    """Where there are AMX tiles, oneDNN multiplies bfloat16 by them; the native kernels do not."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def _quantize(
    config: EngineConfig, kernels: NativeKernels | None, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether linear modules become int8. Raises EngineStartFailed where they cannot."""
    if config.quantization == "none":
        return False
    if kernels is not None:
        return True
    if device.type != "cpu":
        remedy = f"which do not run on {device}: add --device cpu"
    elif dtype not in DTYPES:
        remedy = f"which have no {str(dtype).removeprefix('torch.')}: add --dtype float32"
    elif config.kernels == "torch":
        remedy = "which --kernels torch turns off: leave that out"
    else:
        remedy = "which are not built: install a C++ compiler (g++), then install adapterd again"
    raise EngineStartFailed(
        f"--quantization {config.quantization} needs the native CPU kernels, {remedy}; or leave "
        "--quantization out"
    )


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    seen: dict[int, AttentionFacts],
    **others: Any,
) -> tuple[Tensor, None]:
    """Notes what one layer's attention is asked for; its output is of no use."""
    refuse_unknown(others)
    layer = getattr(module, "layer_idx", None)
    if layer is None or layer in seen:
        raise EngineStartFailed(
            f"{type(module).__name__} shares its cache between layers, which is not served here"
        )
    seen[layer] = AttentionFacts(
        LayerShape(key.shape[1], key.shape[3], value.shape[3]),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    return query.new_zeros(*query.shape[:1], query.shape[2], query.shape[1], value.shape[3]), None


def _probe(
    model: Any, architecture: str
) -> tuple[dict[int, AttentionFacts], list[dict[str, nn.Module]]]:
    """Runs a few tokens: what each layer's attention is, and which linear modules see every row.

    The modules come in groups of those that read the same input one after another. Modules that
    see other rows (routed experts, the head) cannot be targeted.
    """
    reads: list[tuple[str, Tensor]] = []  # the inputs themselves, so that no two share an id
    head = model.get_output_embeddings()
    candidates: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: reads.append((name, args[0]))

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in candidates.items()]
    layers: dict[int, AttentionFacts] = {}
    ids = torch.arange(1, PROBE_TOKENS + 1, device=model.device).unsqueeze(0)
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=ids - 1, use_cache=False, seen=layers)
    except (TypeError, RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise EngineStartFailed(
            f"{architecture} cannot run with the paged attention: {error}"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    wanted = model.config.get_text_config().num_hidden_layers
    if len(layers) != wanted:
        raise EngineStartFailed(
            f"{architecture} routes {len(layers)} of its {wanted} layers through transformers' "
            "AttentionInterface; all of them must be, for their keys and values to be paged"
        )
    return layers, [{name: candidates[name] for name in group} for group in _grouped(reads)]


def _grouped(reads: list[tuple[str, Tensor]]) -> list[list[str]]:
    """Names of modules that see every row, those that follow each other on one input together."""
    rows_of: dict[str, list[int]] = {}
    for name, x in reads:
        rows_of.setdefault(name, []).append(x.numel() // x.shape[-1])
    groups: list[list[str]] = []
    last: Tensor | None = None
    for name, x in reads:
        if set(rows_of[name]) != {PROBE_TOKENS}:
            last = None
        elif len(rows_of[name]) > 1:  # called again and again: by itself, listed once
            last = None
            if [name] not in groups:
                groups.append([name])
        elif x is last:
            groups[-1].append(name)
        else:
            groups.append([name])
            last = x
    return groups


def self_check(base: LoadedBase, paged_logits: Callable[[list[list[int]]], list[Tensor]]) -> None:
    """Compares paged logits of a mixed batch with the model's own, each prompt alone.

    `paged_logits` gives [vocab] of the last token of each prompt, run as one flat batch.
    Raises EngineStartFailed if they part by more than rounding: in bfloat16, thirty layers of it
    move logits by a fiftieth of their spread.
    """
    step = max(1, base.vocab_size // 17)
    prompts = [[(3 + i * step) % base.vocab_size for i in range(count)] for count in (9, 4, 1, 6)]
    paged = paged_logits(prompts)
    base.model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        with torch.inference_mode():
            own = [
                base.model(torch.tensor([p], device=base.device), use_cache=False).logits[0, -1]
                for p in prompts
            ]
    finally:
        base.model.set_attn_implementation(PAGED_ATTENTION)  # type: ignore[operator]
    tolerance = 1e-3 if base.dtype == torch.float32 else 0.1
    for ours, theirs in zip(paged, own, strict=True):
        spread = float(theirs.float().std()) or 1.0
        apart = float((ours.float() - theirs.float()).pow(2).mean().sqrt()) / spread
        if not apart <= tolerance:
            raise EngineStartFailed(
                f"{base.architecture}: paged attention gives other logits than the model alone "
                f"({apart:.2g} of their spread apart); this architecture cannot be served"
            )
