import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from adapters_store.errors import InvalidAdapter, StoreCorrupt
from adapters_store.package import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_package,
    package_digest,
    parse_config,
    write_package,
)
from tests.adapters_store.builders import CONFIG, folder, tensors


@pytest.fixture
def package(tmp_path):
    weights = tmp_path / "upload"
    weights.write_bytes(folder()[WEIGHTS_NAME])
    write_package(folder()[CONFIG_NAME], weights, tmp_path / "package")
    return tmp_path / "package"


def test_content_is_what_was_uploaded(package):
    content = load_package(package, package_digest(package))
    assert content.config == CONFIG | {"target_modules": ["q_proj", "v_proj"]}
    assert content.tensors.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert content.tensors[name].dtype == tensor.dtype
        assert torch.equal(content.tensors[name], tensor)


def test_weights_lie_as_the_library_files_them(package, tmp_path):
    save_file(tensors(), tmp_path / "by library", {"format": "pt"})
    assert (package / WEIGHTS_NAME).read_bytes() == (tmp_path / "by library").read_bytes()


def test_unaligned_weights_are_stored_aligned(tmp_path):
    """A legal file whose float32 tensor starts at an odd multiple of two bytes."""
    header = {
        "a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"\x00\x3c" + b"\x00\x00\x80\x3f"
    (tmp_path / "upload").write_bytes(data)
    digest = write_package(b"{}", tmp_path / "upload", tmp_path / "package")
    loaded = load_file(tmp_path / "package" / WEIGHTS_NAME)
    assert loaded["a"].item() == loaded["b"].item() == 1.0
    assert loaded["b"].data_ptr() % 4 == 0
    assert package_digest(tmp_path / "package") == digest


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_any_changed_byte_is_found(package, name):
    expected = package_digest(package)
    original = (package / name).read_bytes()
    for at in range(len(original)):
        changed = bytearray(original)
        changed[at] ^= 1 << (at % 8)
        (package / name).write_bytes(bytes(changed))
        try:
            assert package_digest(package) != expected
        except StoreCorrupt:
            continue
    (package / name).write_bytes(original)
    assert package_digest(package) == expected


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b" ", lambda _: b""]
)
def test_any_changed_length_is_found(package, name, change):
    original = (package / name).read_bytes()
    (package / name).write_bytes(change(original))
    with pytest.raises(StoreCorrupt):
        package_digest(package)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (b"[]", "not a JSON object"),
        (b"", "empty"),
        (b'{"r": 1, "r": 2}', "'r' twice"),
        (b'{"lora_alpha": NaN}', "NaN"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "16 deep"),
    ],
)
def test_bad_configs_are_named(config, says):
    with pytest.raises(InvalidAdapter) as refused:
        parse_config(config)
    assert says in refused.value.message
    assert CONFIG_NAME in refused.value.message


def test_the_longest_config_taken_can_be_read_back(tmp_path):
    (tmp_path / "upload").write_bytes(save(tensors()))
    config = json.dumps({"é" * 500_000: 1}, ensure_ascii=False).encode()
    digest = write_package(config, tmp_path / "upload", tmp_path / "package")
    assert package_digest(tmp_path / "package") == digest
