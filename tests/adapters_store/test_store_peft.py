"""Adapters as PEFT makes them, in and out of a store."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from adapters_store.content import AdapterContent, AdapterFacts
from adapters_store.errors import InvalidAdapter
from adapters_store.store import AdapterStore, UploadedFile
from tests.adapters_store.builders import uploads

pytestmark = pytest.mark.filterwarnings(  # peft's use of transformers, nothing of ours
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

CONFIGS = {
    "plain": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "patterns": LoraConfig(
        r=8,
        lora_alpha=32,
        target_modules="all-linear",
        rank_pattern={"layers.0.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 5},
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    ),
    "dora": LoraConfig(
        r=4, target_modules=["o_proj"], use_dora=True, layers_to_transform=[1],
        init_lora_weights=False,
    ),
}  # fmt: skip
TOKENS = torch.tensor([[1, 5, 9, 33, 2, 60]])


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
        )
    ).eval()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def trained(request, tmp_path_factory) -> Path:
    """A folder that save_pretrained wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    get_peft_model(tiny_llama(), CONFIGS[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture
def store(tmp_path):
    opened = AdapterStore(tmp_path / "data", base_name="demo")
    yield opened
    opened.check()
    opened.close()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(tiny_llama(), str(folder)).eval()(TOKENS).logits


def any_lora(content: AdapterContent) -> AdapterFacts:
    return AdapterFacts("lora", content.config["r"], (), 0)


def as_files(folder: Path) -> list[UploadedFile]:
    return uploads({path.name: path.read_bytes() for path in sorted(folder.iterdir())})


def as_zip(folder: Path) -> list[UploadedFile]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.iterdir(), reverse=True):
            target.write(path, f"{folder.name}/{path.name}")
    return [UploadedFile("adapter.zip", out)]


def as_tar(folder: Path) -> list[UploadedFile]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as target:
        target.add(folder, ".")
    return [UploadedFile("adapter.tar.gz", out)]


def test_a_downloaded_zip_gives_the_same_logits(store, trained, tmp_path):
    published = store.publish("mine", as_files(trained), check=any_lora)
    assert published.ignored_files == ("README.md",)
    with (tmp_path / "x.zip").open("wb") as out:
        store.write_zip(published.version.digest, out)
    with zipfile.ZipFile(tmp_path / "x.zip") as downloaded:
        downloaded.extractall(tmp_path / "unpacked")
    expected = logits(trained)
    assert torch.equal(logits(tmp_path / "unpacked"), expected)
    with torch.no_grad():
        assert not torch.allclose(tiny_llama()(TOKENS).logits, expected, atol=1e-3)


def test_however_it_is_packed_it_is_one_version(store, trained):
    for send in (as_files, as_zip, as_tar):
        version = store.publish("mine", send(trained), check=any_lora).version
        assert version.number == 1


def test_saving_again_on_another_machine_is_the_same_version(store, trained, tmp_path):
    """Another base path, another order of target_modules, another PEFT."""
    first = store.publish("mine", as_files(trained), check=any_lora)
    PeftModel.from_pretrained(tiny_llama(), str(trained)).save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_bytes())
    config |= {"base_model_name_or_path": "/somewhere/else", "peft_version": "9.9"}
    config["target_modules"] = list(reversed(config["target_modules"]))
    (tmp_path / "again" / "adapter_config.json").write_text(json.dumps(config))
    second = store.publish("mine", as_files(tmp_path / "again"), check=any_lora)
    assert not second.created
    assert second.version == first.version


def test_pickled_weights_are_refused_with_the_remedy(store, trained, tmp_path):
    torch.save({}, tmp_path / "adapter_model.bin")
    files = uploads(
        {
            "adapter_config.json": (trained / "adapter_config.json").read_bytes(),
            "adapter_model.bin": (tmp_path / "adapter_model.bin").read_bytes(),
        }
    )
    for sent in (files, files[1:]):  # torch's pickles are zips: alone, it looks like an archive
        with pytest.raises(InvalidAdapter, match="safe_serialization=True"):
            store.publish("mine", sent, check=any_lora)
