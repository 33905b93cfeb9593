"""Reads server-sent events in tests."""

import json
from typing import Any


def events(body: str) -> list[Any]:
    """The stream's objects; "[DONE]" stays a string."""
    parts = [part for part in body.split("\n\n") if part]
    assert all(part.startswith("data: ") for part in parts)
    data = [part.removeprefix("data: ") for part in parts]
    return [one if one == "[DONE]" else json.loads(one) for one in data]
