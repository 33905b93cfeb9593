"""The header of a safetensors file, parsed under our own rules before any library sees the file.

Here: TensorSpec, Header, read_header, canonical_header. Not here: tensor values, PEFT's names.
Format: https://huggingface.co/docs/safetensors (8-byte little-endian length, JSON, data).
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from adapters_store.errors import InvalidAdapter
from adapters_store.strict_json import loads, shorten

MAX_HEADER_BYTES = 1 << 20
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40
ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes taken. F64 is not among them: no trainer writes it, and its finite values can overflow
in every dtype that is served."""

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies: bytes `start` to `end` of the file's data part."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: `tensors` in the order of their data, which they cover exactly."""

    tensors: tuple[TensorSpec, ...]
    data_start: int  # offset in the file at which the data part begins
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, file_bytes: int) -> Header:
    """The header of an open safetensors file of `file_bytes` bytes, read from its start.

    Raises InvalidAdapter, naming the tensor at fault where there is one.
    """
    file.seek(0)
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise InvalidAdapter("the safetensors file is shorter than its 8-byte header length")
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapter(
            f"the safetensors header says it is {length} bytes long; at most "
            f"{MAX_HEADER_BYTES} are taken. Is the file a safetensors file?"
        )
    data_start = _LENGTH.size + length
    text = file.read(length)
    if len(text) < length:
        raise InvalidAdapter("the safetensors file ends within its header; upload it again whole")
    return parse_header(text, data_bytes=file_bytes - data_start)


def parse_header(text: bytes, *, data_bytes: int) -> Header:
    """The header whose JSON is `text`, for a data part of `data_bytes` bytes."""
    parsed = loads(
        text,
        what="the safetensors header",
        max_bytes=MAX_HEADER_BYTES,
        max_depth=3,
        error=InvalidAdapter,
    )
    if not isinstance(parsed, dict):
        raise InvalidAdapter("the safetensors header is not a JSON object")
    metadata = _metadata(parsed.pop("__metadata__", {}))
    specs = [_spec(name, entry) for name, entry in parsed.items()]
    tensors = tuple(sorted(specs, key=lambda spec: (spec.start, spec.end)))
    _check_covered(tensors, data_bytes)
    return Header(tensors, _LENGTH.size + len(text), metadata)


def canonical_header(tensors: Iterable[TensorSpec]) -> tuple[bytes, tuple[TensorSpec, ...]]:
    """Length and header bytes of the one form in which we store these tensors, and their places.

    Wider items first, then by name: every tensor is aligned to its item size without gaps.
    The header is padded to 8 bytes; its only metadata is the format PEFT looks for.
    """
    placed: list[TensorSpec] = []
    end = 0
    for spec in sorted(tensors, key=lambda spec: (-ITEM_BYTES[spec.dtype], spec.name)):
        start, end = end, end + spec.end - spec.start
        placed.append(TensorSpec(spec.name, spec.dtype, spec.shape, start, end))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for spec in placed:
        offsets = [spec.start, spec.end]
        entries[spec.name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text, tuple(placed)


def _metadata(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidAdapter("the safetensors header's __metadata__ must map strings to strings")
    return value


def _spec(name: str, entry: Any) -> TensorSpec:
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidAdapter(
            f"tensor name {shorten(name)} is empty, unprintable or over {MAX_NAME_CHARS} characters"
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(
            f"tensor {shorten(name)}: its header entry must hold dtype, shape and data_offsets only"
        )
    item_bytes = _item_bytes(name, entry["dtype"])
    shape = _naturals(name, "shape", entry["shape"])
    # Over non-zero sizes only: a 0 among them must not hide a size that overflows in a library.
    if len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
        raise InvalidAdapter(
            f"tensor {shorten(name)} has more than {MAX_DIMENSIONS} dimensions or "
            f"{MAX_ELEMENTS} elements"
        )
    offsets = _naturals(name, "data_offsets", entry["data_offsets"])
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidAdapter(f"tensor {shorten(name)}: data_offsets must be [start, end]")
    needed = item_bytes * math.prod(shape)
    if offsets[1] - offsets[0] != needed:
        raise InvalidAdapter(
            f"tensor {shorten(name)} of shape {list(shape)} and dtype {entry['dtype']} needs "
            f"{needed} bytes, but its data_offsets span {offsets[1] - offsets[0]}"
        )
    return TensorSpec(name, entry["dtype"], shape, *offsets)


def _item_bytes(name: str, dtype: Any) -> int:
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InvalidAdapter(
            f"tensor {shorten(name)} has dtype {shorten(str(dtype))}; "
            f"save it as one of {', '.join(ITEM_BYTES)}"
        )
    return ITEM_BYTES[dtype]


def _naturals(name: str, field: str, value: Any) -> tuple[int, ...]:
    # type(), not isinstance: true is no size
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise InvalidAdapter(f"tensor {shorten(name)}: {field} must list non-negative integers")
    return tuple(value)


def _check_covered(tensors: Iterable[TensorSpec], data_bytes: int) -> None:
    """Raises unless the tensors, sorted by place, tile bytes 0 to `data_bytes`."""
    end = 0
    for spec in tensors:
        if spec.start != end:
            fault = "overlaps the one before it" if spec.start < end else "leaves a gap before it"
            raise InvalidAdapter(f"tensor {shorten(spec.name)} {fault} in the safetensors data")
        end = spec.end
    if end != data_bytes:
        raise InvalidAdapter(
            f"the safetensors header describes {end} bytes of data, but the file holds "
            f"{data_bytes}; upload it again whole"
        )
