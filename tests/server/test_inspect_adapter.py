import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import demo
from adapters_store.errors import InvalidRequest
from server.inspect_adapter import base_of, inspect


@pytest.fixture
def adapter(tmp_path) -> Path:
    return shutil.copytree(demo.adapter_paths()["dates"], tmp_path / "dates")


def files(folder: Path) -> list[Path]:
    return [folder / "adapter_config.json", folder / "adapter_model.safetensors"]


def test_an_adapter_that_fits(adapter):
    report = inspect(files(adapter), str(demo.base_path()), max_rank=64)
    assert report.refusal is None
    facts = dict(report.facts)
    assert facts["kind"] == "LORA"
    assert int(facts["r"]) == json.loads((adapter / "adapter_config.json").read_text())["r"]
    assert "of the base's" in facts["modules"]


def test_without_a_base_only_the_form_is_looked_at(adapter):
    assert inspect(files(adapter), None, max_rank=64).refusal is None


def test_why_it_would_be_refused_is_what_an_upload_would_say(adapter):
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, weights)
    report = inspect(files(adapter), str(demo.base_path()), max_rank=64)
    assert report.refusal is not None
    assert name.removeprefix("base_model.model.").rpartition(".lora_")[0] in report.refusal
    assert dict(report.facts)["kind"] == "LORA"


def test_a_file_that_is_no_safetensors(adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"nothing")
    report = inspect(files(adapter), None, max_rank=64)
    assert report.refusal is not None
    assert "safetensors file is shorter" in report.refusal


def test_a_base_that_is_not_there(tmp_path):
    with pytest.raises(InvalidRequest, match="--model"):
        base_of(str(tmp_path / "nothing"))


def test_the_bases_modules_are_those_that_the_engine_finds():
    modules = base_of(str(demo.base_path())).modules
    assert "model.layers.0.self_attn.q_proj" in modules
    assert not any(name.endswith("lm_head") for name in modules)
