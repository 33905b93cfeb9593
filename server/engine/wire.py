"""Frames on the socket between the API process and the engine: length, kind, then msgpack.

No pickle: the kind picks one of the dataclasses of messages.py that may come from that side, and
every field is checked against its type there.
"""

import struct
from typing import Generic, TypeVar, get_args

import msgspec

from server.engine.messages import FromEngine, ToEngine

HEADER = struct.Struct("!IB")  # bytes of msgpack, kind
Message = TypeVar("Message")


class Codec(Generic[Message]):
    """One direction's messages, to bytes and back."""

    def __init__(self, kinds: tuple[type[Message], ...]) -> None:
        self._numbers = {kind: number for number, kind in enumerate(kinds)}
        self._decoders = [msgspec.msgpack.Decoder(kind) for kind in kinds]
        self._encoder = msgspec.msgpack.Encoder()

    def frame(self, message: Message) -> bytes:
        """The bytes of one message, header included."""
        body = self._encoder.encode(message)
        return HEADER.pack(len(body), self._numbers[type(message)]) + body

    def message(self, kind: int, body: bytes) -> Message:
        """What a frame's two parts say. Raises ValueError if it is none of these messages."""
        if kind >= len(self._decoders):
            raise ValueError(f"no message has the number {kind}")
        return self._decoders[kind].decode(body)


TO_ENGINE: Codec[ToEngine] = Codec(get_args(ToEngine))
FROM_ENGINE: Codec[FromEngine] = Codec(get_args(FromEngine))
