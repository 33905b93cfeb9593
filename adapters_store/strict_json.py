"""JSON as strangers send it, read strictly: bounded before it is parsed, refused when ambiguous.

Here: loads. Not here: schemas, files, HTTP.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NoReturn

from adapters_store.errors import InvalidRequest, TooLarge

INT_LOW, INT_HIGH = -(2**63), 2**63 - 1  # what SQLite, torch and every client can hold
MAX_NAMED = 80  # characters of a key or literal repeated in a message: errors stay small
MAX_PATH = 200  # and of the path to it

# A string, closed or not: it always matches at a quote, so the scan stays linear in the input.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_LONG_INT = re.compile(rb"[0-9]{19}")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """Raised out of the parser's hooks, which know what is wrong but not where."""


def loads(
    data: bytes,
    *,
    what: str,
    max_bytes: int,
    max_depth: int = 64,
    error: type[InvalidRequest] = InvalidRequest,
) -> Any:
    """The value of one UTF-8 JSON text; `what` names it in messages ("body").

    Refused beyond what JSON itself refuses: a byte-order mark, a key given twice, NaN and
    Infinity (1e999 too), integers outside 64 bits, unpaired surrogate escapes, nesting deeper
    than `max_depth` (kept well under the interpreter's recursion limit by the caller).

    Raises TooLarge over `max_bytes`; otherwise `error`, whose param is the offending key's path
    where there is one.
    """
    if len(data) > max_bytes:
        raise TooLarge(f"{what} is {len(data)} bytes long; at most {max_bytes} are taken")
    text = _text(data, what, error)
    if _too_deep(data, max_depth):
        raise error(f"{what} is nested more than {max_depth} deep")
    ints = _bounded_int if _LONG_INT.search(data) else None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite_float,
            parse_int=ints,
            parse_constant=_no_constant,
        )
    except json.JSONDecodeError as bad:
        where = f"line {bad.lineno}, column {bad.colno}"
        raise error(f"{what} is not valid JSON: {bad.msg} at {where}") from None
    except _Refused as bad:
        path = _path_of_refused(text)
        at = f" at {path}" if path else ""
        raise error(f"{what} holds {bad}{at}", param=path) from None
    if _SURROGATE_ESCAPE.search(data) and not _encodable(value):
        raise error(f"{what} holds an unpaired surrogate escape, which is no text")
    return value


def shorten(text: str) -> str:
    """`text` for a message: printable, quoted, at most MAX_NAMED characters of it."""
    return ascii(text if len(text) <= MAX_NAMED else text[:MAX_NAMED] + "…")


def _text(data: bytes, what: str, error: type[InvalidRequest]) -> str:
    if not data.strip():
        raise error(f"{what} is empty; expected JSON")
    if data.startswith(b"\xef\xbb\xbf"):
        raise error(f"{what} starts with a byte-order mark; send plain UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as bad:
        raise error(f"{what} is not UTF-8: bad byte at offset {bad.start}") from None


def _too_deep(data: bytes, max_depth: int) -> bool:
    """Whether the parser could recurse deeper than `max_depth`.

    The count agrees with the parser up to the first syntax error, where the parser stops.
    """
    if data.count(b"[") + data.count(b"{") <= max_depth:
        return False
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > max_depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"the key {shorten(twice)} twice")
    return found


def _finite_float(literal: str) -> float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {shorten(literal)}, too large to be finite")
    return value


def _bounded_int(literal: str) -> int:
    if len(literal) > 20 or not INT_LOW <= (value := int(literal)) <= INT_HIGH:
        raise _Refused(f"the integer {shorten(literal)}, outside 64 bits")
    return value


def _no_constant(literal: str) -> NoReturn:
    raise _Refused(f"{literal}, which is no JSON number")


class _Bad:
    """Stands in the tolerant parse for a value the strict one refuses."""


def _path_of_refused(text: str) -> str | None:
    """Path of the first refused value, such as `messages[0].weight`; only runs on bad input."""

    def marked(strict: Any) -> Any:
        def parse(literal: str) -> Any:
            try:
                return strict(literal)
            except _Refused:
                return _Bad()

        return parse

    def tolerant(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        times = Counter(key for key, _ in pairs)
        return {key: _Bad() if times[key] > 1 else value for key, value in pairs}

    try:
        value = json.loads(
            text,
            object_pairs_hook=tolerant,
            parse_float=marked(_finite_float),
            parse_int=marked(_bounded_int),
            parse_constant=marked(_no_constant),
        )
    except ValueError:
        return None  # the refused value came first, a syntax error further on
    path = next(_bad_paths(value, ""), None)
    return path and path[:MAX_PATH]


def _bad_paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, _Bad) and path:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            name = key[:MAX_NAMED]
            yield from _bad_paths(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _bad_paths(item, f"{path}[{index}]")


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
