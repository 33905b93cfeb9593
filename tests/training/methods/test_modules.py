"""Where the methods that add to a layer put it, over the families of bases."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.training.methods.test_trainable import check
from tests.training.methods.tiny import (
    FAMILIES,
    FAMILY,
    attached,
    logits,
    make_base,
    plan_of,
    rows,
    saved,
    train,
)
from training.methods.bottleneck import Bottleneck
from training.methods.trainable import attach


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("method", ["lora", "ia3", "prefix-tuning", "p-tuning", "bottleneck"])
def test_every_family_of_bases(family, method: str, tmp_path: Path) -> None:
    plan = plan_of(method, family)
    check(attached(method, make_base(family), targets=plan.targets), tmp_path, make_base(family))


@pytest.mark.parametrize(
    ("family", "outputs", "inputs"),
    [
        ("llama", {"k_proj", "v_proj"}, {"down_proj"}),
        ("gpt2", {"c_attn"}, {"mlp.c_proj"}),
        ("gpt_neox", {"query_key_value"}, {"dense_4h_to_h"}),
        ("phi3", {"qkv_proj"}, {"down_proj"}),
        ("mixtral", {"k_proj", "v_proj"}, set()),
    ],
)
def test_ia3_rescales_keys_values_and_the_mlps_inner(
    family: str, outputs: set, inputs: set, tmp_path: Path
) -> None:
    plan = plan_of("ia3", FAMILY[family])
    folder = saved(attached("ia3", make_base(FAMILY[family]), targets=plan.targets), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert set(config["target_modules"]) == outputs | inputs
    assert set(config["feedforward_modules"] or ()) == inputs


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_prefix_begins_as_the_first_words_of_the_data(family: str) -> None:
    """The text after those words, and the text after the prefix, have the same logits."""
    base = make_base(FAMILY[family])
    words = rows()[0]["input_ids"][rows()[0]["attention_mask"].bool()][:5]
    text, mask = rows()[1]["input_ids"], rows()[1]["attention_mask"].bool()
    with torch.no_grad():
        whole = base(torch.cat([words.expand(len(text), -1), text], dim=1)).logits[:, 5:]
    found = logits(attached("prefix-tuning", base).model)
    torch.testing.assert_close(found[mask], whole[mask], rtol=1e-4, atol=1e-4)


def test_a_prompt_begins_with_words_of_the_vocabulary() -> None:
    trainable = attached("prompt-tuning")
    prompt = trainable.model.prompt_encoder["default"].embedding.weight
    vocabulary = trainable.model.get_base_model().get_input_embeddings().weight
    nearest = torch.cdist(prompt, vocabulary).min(dim=1)
    assert torch.equal(prompt, vocabulary[nearest.indices])


def test_p_tuning_is_saved_as_what_came_of_its_encoder(tmp_path: Path) -> None:
    trainable = attached("p-tuning")
    train(trainable)
    encoder = trainable.model.prompt_encoder["default"]
    assert not torch.equal(encoder.embedding.weight, encoder(torch.arange(5)))
    loaded = PeftModel.from_pretrained(make_base(), saved(trainable, tmp_path))
    stored = loaded.prompt_encoder["default"].embedding.weight
    torch.testing.assert_close(stored, encoder(torch.arange(5)))


def test_a_bottleneck_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    module = Bottleneck(6, 3, 0.0)
    torch.nn.init.normal_(module.up.weight)
    torch.nn.init.normal_(module.up.bias)
    hidden = torch.randn(2, 5, 6)
    down = torch.einsum("btw,sw->bts", hidden, module.down.weight) + module.down.bias
    up = torch.einsum("bts,ws->btw", down.clamp(min=0), module.up.weight) + module.up.bias
    torch.testing.assert_close(module(hidden), hidden + up)
    module.enabled = False
    assert module(hidden) is hidden


@pytest.mark.parametrize("method", ["lora", "pissa", "ia3", "prompt-tuning", "bottleneck"])
def test_checkpointed_layers_give_the_same_gradients(method: str) -> None:
    grads = []
    for checkpointed in (False, True):
        trainable = attach(make_base(), plan_of(method), seed=1, total_steps=9)
        model = trainable.model.train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model(**rows()[0]).loss.backward()
        trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        grads.append({name: one.grad for name, one in trained})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)
    assert any(grad.count_nonzero() for grad in grads[0].values())
