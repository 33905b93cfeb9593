"""Bases that cannot be served say which part and why; those that can are left as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, T5Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from adapters_store.errors import EngineStartFailed
from benchmarks.folder_source import FolderSource
from server.engine.base import _grouped, load_base
from server.engine.base_files import digest_files, resolve_model
from server.engine.engine import Engine
from server.engine.messages import EngineConfig, LoadProgress
from tests.support.families import LLAMA, make_base


def start(model: Path | str, **options: Any) -> Engine:
    return Engine(EngineConfig(model=str(model), blobs="", **options), FolderSource({}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(LLAMA, tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("model_type", ["falcon", "bloom", "mpt"])
def test_attention_outside_the_interface_is_named(model_type: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    names = {"mpt": {"d_model": 32, "n_heads": 2, "n_layers": 1, "vocab_size": 64}}
    config = CONFIG_MAPPING[model_type](**names.get(model_type, sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EngineStartFailed, match=r"(?i)" + model_type):
        start(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=16, num_layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(EngineStartFailed, match="no decoder-only language model"):
        start(tmp_path)


def test_layers_that_are_no_attention_are_refused(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["qwen3_next"](
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2
    )
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(EngineStartFailed, match="linear_attention"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("model", "says"),
    [("/no/such/folder", "no such folder"), ("./here/not", "no such folder"), (".", "config.json")],
)
def test_a_folder_that_is_none_says_so(
    model: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineStartFailed, match=says):
        resolve_model(model)


def test_pickled_weights_are_never_read(llama: Path, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(llama).save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineStartFailed, match="safetensors"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_model_len": 9999}, "--max-model-len 9999 is over the 256 positions"),
        ({"kv_cache_bytes": 10}, "raise --kv-cache-bytes"),
        ({"slot_bytes": 10}, "--slot-bytes 10: the smallest adapter takes .* bytes on this base"),
        ({"kv_cache_bytes": 100_000, "max_model_len": 250}, "over the .* tokens that the KV cache"),
        ({"device": "cuda:7"}, "--device cuda:7 cannot be used"),
    ],
)
def test_limits_that_cannot_be_met_name_the_flag(
    llama: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(EngineStartFailed, match=says):
        start(llama, **options)


def test_the_context_shrinks_to_what_the_cache_holds(llama: Path) -> None:
    engine = start(llama, kv_cache_bytes=100_000)
    assert engine.info.max_model_len == engine.info.kv_blocks * 16 < 256
    engine.close()


def test_frequencies_that_follow_the_batch_end_the_context_early(tmp_path: Path) -> None:
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = CONFIG_MAPPING["llama"](**(dict(LLAMA.config) | {"rope_parameters": rope}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = start(tmp_path)
    assert engine.info.max_model_len == 64
    engine.close()


def test_progress_and_digest(llama: Path) -> None:
    seen: list[LoadProgress] = []
    before = digest_files(llama)
    engine = Engine(
        EngineConfig(model=str(llama), blobs=""), FolderSource({}), on_progress=seen.append
    )
    engine.close()
    assert {p.what for p in seen} == {"digest", "weights"}
    assert seen[-1].done == seen[-1].total
    assert engine.info.digest == before == digest_files(llama)


def test_modules_that_read_one_input_are_grouped_by_running_the_base(llama: Path) -> None:
    config = EngineConfig(model=str(llama), blobs="", device="cpu", dtype="float32")
    base = load_base(llama, config, lambda _: None)
    first = [group.names for group in base.linears if ".layers.0." in group.names[0]]
    assert [[name.rpartition(".")[2] for name in names] for names in first] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert len(base.linears) == 4 * len(base.layers)
    assert base.shapes.keys() == {name for group in base.linears for name in group.names}


def test_a_module_that_is_called_twice_is_by_itself() -> None:
    x, y, few = torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(2, 4)
    reads = [("twice", x), ("a", x), ("b", x), ("expert", few), ("c", x), ("twice", y), ("d", y)]
    assert _grouped(reads) == [["twice"], ["a", "b"], ["c"], ["d"]]
