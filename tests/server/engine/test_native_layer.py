"""Native layers stand in only for layers whose work they do, and then for all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from server.engine import native_layer
from server.engine.base import LoadedBase, load_base
from server.engine.messages import EngineConfig
from server.kernels.cpu.native import load_native
from tests.support.families import FAMILIES, LLAMA, Family, make_base

pytestmark = pytest.mark.skipif(not load_native(), reason="the native library is not built")
NATIVE = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2"}
LAYERS = 3


def load(folder: Path, *, dtype: str = "float32", kernels: str = "auto") -> LoadedBase:
    config = EngineConfig(
        model=str(folder), blobs="", dtype=dtype, device="cpu", threads=1, kernels=kernels
    )
    return load_base(folder, config, lambda _: None)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_families_that_are_native(family: Family, tmp_path: Path) -> None:
    base = load(make_base(family, tmp_path))
    assert native_layer.attach(base) == (LAYERS if family.name in NATIVE else 0)


def test_in_bfloat16_too(tmp_path: Path) -> None:
    assert native_layer.attach(load(make_base(LLAMA, tmp_path), dtype="bfloat16")) == LAYERS


def test_where_there_are_amx_tiles_bfloat16_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    folder = make_base(LLAMA, tmp_path)
    base = load(folder, dtype="bfloat16")
    assert native_layer.attach(base) == 0
    assert base.pads_rows
    assert native_layer.attach(load(folder)) == LAYERS, "float32 has no tiles"


def test_torch_kernels_leave_layers_alone(tmp_path: Path) -> None:
    assert native_layer.attach(load(make_base(LLAMA, tmp_path), kernels="torch")) == 0


def test_an_adapter_kind_without_a_hook_leaves_its_layers_alone(tmp_path: Path) -> None:
    base = load(make_base(LLAMA, tmp_path))
    group = next(g for g in base.linears if g.names[0] == "model.layers.1.mlp.gate_proj")
    group.on_output(lambda x, outs: None, None)
    assert native_layer.attach(base) == LAYERS - 1


def test_a_layer_that_does_something_else_keeps_its_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlamaDecoderLayer.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = own(self, *args, **kwargs)
        return out * 1.01 if self.self_attn.layer_idx == 1 else out

    monkeypatch.setattr(LlamaDecoderLayer, "forward", scaled)
    base = load(make_base(LLAMA, tmp_path))
    assert native_layer.attach(base) == LAYERS - 1
    assert "forward" not in vars(base.model.model.layers[1])
