import io
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from adapters_store.errors import InvalidAdapter
from adapters_store.safetensors_header import Header, canonical_header, read_header

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES),
    max_size=6,
)


def read(data: bytes) -> Header:
    return read_header(io.BytesIO(data), len(data))


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(TENSORS)
@settings(max_examples=100, deadline=None)
def test_agrees_with_the_library(specs):
    tensors = {name: torch.randn(shape).to(DTYPES[dtype]) for name, (dtype, shape) in specs.items()}
    data = save(tensors, {"format": "pt"})
    header = read(data)
    assert {spec.name: (spec.dtype, spec.shape) for spec in header.tensors} == specs
    assert header.metadata == {"format": "pt"}
    for spec in header.tensors:
        raw = data[header.data_start + spec.start : header.data_start + spec.end]
        assert raw == tensors[spec.name].reshape(-1).view(torch.uint8).numpy().tobytes()


@given(TENSORS)
@settings(max_examples=100, deadline=None)
def test_canonical_form_is_aligned_fixed_and_loads(specs):
    tensors = {name: torch.randn(shape).to(DTYPES[dtype]) for name, (dtype, shape) in specs.items()}
    data = save(tensors, {"anything": "else"})
    header = read(data)
    head, placed = canonical_header(header.tensors)
    at = {spec.name: header.data_start + spec.start for spec in header.tensors}
    stored = head + b"".join(data[at[p.name] : at[p.name] + p.end - p.start] for p in placed)
    again = read(stored)
    assert canonical_header(reversed(again.tensors)) == (head, placed)
    assert again.data_start % 8 == 0
    assert all(p.start % DTYPES[p.dtype].itemsize == 0 for p in placed)
    loaded = load(stored)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_files_are_refused_or_still_what_the_library_reads(data):
    valid = save({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.float16)})
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 21))] = data.draw(st.integers(0, 255))
    said = "taken"
    try:
        names = {spec.name for spec in read(bytes(changed)).tensors}
        assert names == load(bytes(changed)).keys()
    except InvalidAdapter as refused:
        said = refused.message
    assert 0 < len(said) < 1000


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_is_refused(noise):
    with pytest.raises(InvalidAdapter):
        read(file_of(noise + b"x"))
    with pytest.raises(InvalidAdapter):
        read(noise)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "shorter than"),
        (b"\0" * 7, "shorter than"),
        (file_of(b"{}", length=(1 << 20) + 1), "at most 1048576"),
        (file_of(b"{}", length=1 << 63), "at most 1048576"),
        (file_of(b"{}", length=3), "ends within its header"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b'{"a": {}, "a": {}}'), "'a' twice"),
        (file_of(b'{"\xff": {}}'), "UTF-8"),
        (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
        (file_of({"__metadata__": []}), "__metadata__"),
        (file_of({"": entry()}, bytes(4)), "tensor name ''"),
        (file_of({"x\n": entry()}, bytes(4)), "unprintable"),
        (file_of({"x" * 513: entry()}, bytes(4)), "over 512 characters"),
        (file_of({"a": 1}), "dtype, shape and data_offsets"),
        (file_of({"a": {**entry(), "more": 1}}, bytes(4)), "dtype, shape and data_offsets"),
        (
            file_of({"a": entry("F64", (1,), (0, 8))}, bytes(8)),
            "dtype 'F64'; save it as one of F32",
        ),
        (file_of({"a": entry("I8", (4,))}, bytes(4)), "'a' has dtype 'I8'"),
        (file_of({"a": entry("F8_E4M3", (4,))}, bytes(4)), "'F8_E4M3'"),
        (file_of({"a": {**entry(), "dtype": ["F32"]}}, bytes(4)), "has dtype"),
        (file_of({"a": entry(shape=(-1,))}, bytes(4)), "'a': shape"),
        (file_of({"a": entry(shape=(True,))}, bytes(4)), "'a': shape"),
        (file_of({"a": entry(shape=(1.0,))}, bytes(4)), "'a': shape"),
        (file_of({"a": {**entry(), "shape": 4}}, bytes(4)), "'a': shape"),
        (file_of({"a": entry(shape=(1,) * 9)}, bytes(4)), "8 dimensions"),
        (file_of({"a": entry(shape=(0, 1 << 62), offsets=(0, 0))}), "elements"),
        (file_of({"a": entry(offsets=(0, 4, 4))}, bytes(4)), "[start, end]"),
        (file_of({"a": entry(offsets=(4, 0))}, bytes(4)), "[start, end]"),
        (file_of({"a": entry(shape=(2,))}, bytes(4)), "needs 8 bytes"),
        (file_of({"a": entry(offsets=(4, 8))}, bytes(8)), "'a' leaves a gap"),
        (
            file_of({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9)),
            "'b' leaves a gap",
        ),
        (
            file_of({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
            "'b' overlaps",
        ),
        (file_of({"a": entry(), "b": entry()}, bytes(4)), "overlaps"),
        (file_of({"a": entry()}, bytes(3)), "describes 4 bytes"),
        (file_of({"a": entry()}, bytes(5)), "describes 4 bytes"),
        (file_of({}, bytes(1)), "describes 0 bytes"),
    ],
)
def test_refuses_and_names_the_tensor(data, says):
    with pytest.raises(InvalidAdapter) as refused:
        read(data)
    assert says in refused.value.message
    assert len(refused.value.message) < 1000
