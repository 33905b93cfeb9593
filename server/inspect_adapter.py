"""What an adapter on disk is, and whether a base would take it; no server, no weights of the base.

Here: inspect, Inspection. The checks are those of an upload.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from adapters_store.checks import check_tensors
from adapters_store.content import AdapterContent, BaseModel
from adapters_store.errors import AdapterdError, InvalidRequest
from adapters_store.members import DEFAULT_LIMITS, UploadedFile
from adapters_store.package import load_package, parse_config, write_package
from adapters_store.upload import Received, receive
from server.adapters import methods
from server.adapters.slot_rows import SlotLimits
from server.engine.linears import linear_shape

SHOWN = (
    "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules", "task_type",
    "peft_version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts to show, in order; and why an upload would be refused, if it would."""

    facts: tuple[tuple[str, str], ...]
    refusal: str | None


def inspect(paths: Sequence[Path], model: str | None, *, max_rank: int | None) -> Inspection:
    """Looks at one archive, or a PEFT folder's files. Raises InvalidRequest for a bad `model`.

    `max_rank`: a server's limit; None: any rank fits.
    """
    limits = SlotLimits(1, sys.maxsize, row_bytes=0, max_rank=max_rank)
    base = None if model is None else base_of(model)
    facts: list[tuple[str, str]] = []
    try:
        with tempfile.TemporaryDirectory(prefix="adapterd-") as scratch:
            received = _received(paths, Path(scratch))
            package = Path(scratch, "package")
            content = load_package(
                package, write_package(received.config, received.weights, package)
            )
            facts += _facts(content, parse_config(received.config))
            check_tensors(content)
            methods.method_of(content)
            if base is not None:
                found = methods.check(content, base, limits=limits)
                facts += [("modules", f"{found.report['modules']} of the base's "
                                      f"{found.report['modules_of_base']}")]  # fmt: skip
    except AdapterdError as error:
        return Inspection(tuple(facts), error.message)
    return Inspection(tuple(facts), None)


def base_of(model: str) -> BaseModel:
    """A base's linear modules, from its config alone. Raises InvalidRequest."""
    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"--model {model}: {error}", param="model") from error
    head = built.get_output_embeddings()
    modules = {
        name: linear_shape(module)
        for name, module in built.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    return BaseModel(Path(model).name, "", type(built).__name__, modules)


def with_norms(base: BaseModel, folder: Path) -> BaseModel:
    """The same, with the norms of those weights that `folder` has under their modules' names."""
    norms: dict[str, float] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():
                module = key.removesuffix(".weight")
                if module in base.modules:
                    weight = weights.get_tensor(key)
                    norms[module] = float(torch.linalg.vector_norm(weight, dtype=torch.float32))
    return replace(base, norms=norms)


def _received(paths: Sequence[Path], scratch: Path) -> Received:
    with ExitStack() as opened:
        files = [UploadedFile(path.name, opened.enter_context(path.open("rb"))) for path in paths]
        return receive(files, scratch / "weights", DEFAULT_LIMITS)


def _facts(content: AdapterContent, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`config` as it was sent: a stored one says no more where the adapter came from."""
    size = sum(tensor.nbytes for tensor in content.tensors.values())
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in content.tensors.values()})
    facts = [
        ("digest", content.digest),
        ("kind", str(config.get("peft_type"))),
        ("tensors", f"{len(content.tensors)}, {size:,} bytes, {', '.join(dtypes)}"),
    ]
    for key in SHOWN:
        if config.get(key) is not None:
            value = config[key]
            facts.append((key, ", ".join(value) if isinstance(value, list) else str(value)))
    return facts
