"""Frames on the socket between the API process and the engine: 4 bytes of length, then JSON.

No pickle: a frame can only ever become one of the dataclasses in messages.py.
"""

import struct
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from server.engine.messages import FromEngine, ToEngine

HEADER = struct.Struct("!I")

TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(Annotated[ToEngine, Field(discriminator="type")])
FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(
    Annotated[FromEngine, Field(discriminator="type")]
)


def frame(adapter: TypeAdapter[Any], message: Any) -> bytes:
    """The bytes of one message."""
    body = adapter.dump_json(message)
    return HEADER.pack(len(body)) + body
