"""The committed base, tokenizer and adapters are what demo/RESULTS.md says they are."""

import json
import re
import subprocess
import sys

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

import demo
from demo.evaluate import BASE, evaluate, heldout_examples, load_artefacts

NAMES = sorted(demo.EXAMPLES)
LORA_NAME = re.compile(r"base_model\.model\.model\.layers\.\d+\.[a-z_.]+\.lora_[AB]\.weight")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.base_path(), local_files_only=True)


def adapter_config(name: str) -> dict:
    return json.loads((demo.adapter_paths()[name] / "adapter_config.json").read_text())


def test_base_is_a_small_bf16_llama():
    config = json.loads((demo.base_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    path = demo.base_path() / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with safe_open(path, framework="pt") as file:
        slices = [file.get_slice(key) for key in file.keys()]
    assert {part.get_dtype() for part in slices} == {"BF16"}
    assert 1_000_000 < sum(size(part.get_shape()) for part in slices) <= 4_000_000


def size(shape: list[int]) -> int:
    return shape[0] * size(shape[1:]) if shape else 1


def test_generation_ends_at_the_end_of_turn(tokenizer):
    config = json.loads((demo.base_path() / "generation_config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|end|>"


def test_chat_template(tokenizer):
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hello!"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Answer briefly.<|end|><|user|>Hello!<|end|><|assistant|>"
    ids = tokenizer.encode(text)
    assert tokenizer.convert_ids_to_tokens([ids[0], ids[-1]]) == ["<|system|>", "<|assistant|>"]


@pytest.mark.parametrize(
    "text",
    [
        "  two  spaces before and after  ",
        "tabs\t\tand\n\nlines\r\n",
        "Grüße, 漢字, кириллица, עברית, 😀👩‍🚀",
        '{"city": "Oslo", "n": 12}',
        "SELECT a FROM b WHERE c >= 1_000 -- done",
        "can't won't ...!? <|not special|>",
        " ",
        "\x00\x7f",
    ],
)
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2031")] == ["2", "0", "3", "1"]


def test_five_or_more_adapters_of_different_shape():
    configs = [adapter_config(name) for name in NAMES]
    assert len(configs) >= 5
    assert len({config["r"] for config in configs}) == len(configs)
    assert len({frozenset(config["target_modules"]) for config in configs}) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_adapter_is_plain_lora(name):
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name)
    config, folder = adapter_config(name), demo.adapter_paths()[name]
    assert (config["peft_type"], config["bias"]) == ("LORA", "none")
    assert not config["modules_to_save"] and not config["use_dora"]
    assert config["base_model_name_or_path"] == "adapterd-demo"
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        assert all(LORA_NAME.fullmatch(key) for key in file.keys())


def test_adapters_are_small_together():
    files = [path / "adapter_model.safetensors" for path in demo.adapter_paths().values()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000


def test_heldout_scores():
    """Every adapter masters its own task; the base and all the others fail at it."""
    model, tokenizer = load_artefacts(demo.artefacts())
    scores = evaluate(model, tokenizer, heldout_examples(count=40, seed=20_000))
    for name in (BASE, *NAMES):
        for task, score in scores[name].items():
            if name == task:
                assert score >= 0.9, (name, task, score)
            else:
                assert score <= 0.2, (name, task, score)


def test_importing_demo_imports_no_torch():
    code = "import sys, demo, demo.export; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
