import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from adapters_store.digest import NOT_IDENTITY, canonical_config, portable_config
from adapters_store.package import package_digest, write_package
from tests.adapters_store.builders import CONFIG, tensors


@pytest.fixture
def digest_of(tmp_path):
    """The digest that a config and tensors get on their way into a store."""
    count = iter(range(1000))

    def digest(config=CONFIG, content=None, metadata=None) -> str:
        number = next(count)
        weights = tmp_path / f"{number}.safetensors"
        weights.write_bytes(save(tensors() if content is None else content, metadata))
        folder = tmp_path / str(number)
        found = write_package(json.dumps(config).encode(), weights, folder)
        assert package_digest(folder) == found
        return found

    return digest


def test_is_what_its_description_says(digest_of):
    """Computed here a second time, from the words of AdapterDigest's docstring."""
    content = {"b": torch.tensor([1.5]), "a": torch.ones(2, 1, dtype=torch.float16)}
    config = b'{"peft_type":"LORA","r":4,"target_modules":["q_proj","v_proj"]}'

    def framed(part: bytes) -> bytes:
        return len(part).to_bytes(8, "little") + part

    expected = hashlib.sha256(
        b"adapterd adapter digest 1\n"
        + framed(config)
        + framed(b'["b", "F32", [1]]')  # wider items come first
        + b"\x00\x00\xc0\x3f"
        + framed(b'["a", "F16", [2, 1]]')
        + b"\x00\x3c\x00\x3c"
    ).hexdigest()
    assert digest_of(CONFIG, content) == expected


@pytest.mark.parametrize(
    "config",
    [
        dict(reversed(CONFIG.items())),
        CONFIG | {"target_modules": ["q_proj", "v_proj"]},
        CONFIG | {"target_modules": ["v_proj", "q_proj", "v_proj"]},
        *[CONFIG | {key: "other"} for key in sorted(NOT_IDENTITY)],
    ],
)
def test_is_the_same_for_the_same_adapter(digest_of, config):
    assert digest_of(config) == digest_of()


def test_does_not_depend_on_how_the_tensors_are_filed(digest_of):
    backwards = dict(reversed(tensors().items()))
    assert digest_of(content=backwards, metadata={"format": "pt", "by": "me"}) == digest_of()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG | {"r": 8},
        CONFIG | {"r": 4.0},
        CONFIG | {"target_modules": ["q_proj"]},
        CONFIG | {"target_modules": "q_proj|v_proj"},
        CONFIG | {"lora_alpha": 16},
        CONFIG | {"use_rslora": True},
        CONFIG | {"layers_to_transform": [0]},
    ],
)
def test_differs_with_the_config(digest_of, config):
    assert digest_of(config) != digest_of()


def test_differs_with_every_side_of_a_tensor(digest_of):
    one = torch.tensor([1.0, 2.0], dtype=torch.float16)
    contents = [
        {"a": one},
        {"b": one},
        {"a": one.flip(0)},
        {"a": one.view(1, 2)},
        {"a": one.view(2, 1)},
        {"a": one.view(torch.bfloat16)},
        {"a": one[:1], "b": one[1:]},
        {"a": one[:1], "b": one[1:], "c": one[:0]},
        {"a": one, "b": one.clone()},
        {},
    ]
    assert len({digest_of(content=content) for content in contents}) == len(contents)


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())))
@settings(max_examples=100, deadline=None)
def test_canonical_config_is_its_own_canonical_form(config):
    canonical = canonical_config(config)
    assert canonical_config(json.loads(canonical)) == canonical
    assert canonical_config({**config, "revision": "main"}) == canonical_config(
        {key: value for key, value in config.items() if key != "revision"}
    )


def test_portable_config_names_the_base_and_keeps_the_rest():
    portable = json.loads(portable_config(CONFIG, "demo"))
    assert portable == CONFIG | {"base_model_name_or_path": "demo", "inference_mode": True}
    assert canonical_config(portable) == canonical_config(CONFIG)


def test_the_order_of_pattern_entries_is_kept_and_tells_versions_apart() -> None:
    one = {"alpha_pattern": {"v_proj": 4, "self_attn.v_proj": 12}, "r": 4}
    other = {"r": 4, "alpha_pattern": {"self_attn.v_proj": 12, "v_proj": 4}}
    assert canonical_config(one) != canonical_config(other)
    stored = json.loads(canonical_config(one))
    assert list(stored["alpha_pattern"]) == ["v_proj", "self_attn.v_proj"]
