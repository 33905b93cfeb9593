"""Files as the body of a reply: read piece by piece in threads."""

import asyncio
from collections.abc import AsyncIterator
from typing import IO

CHUNK_BYTES = 1 << 20


async def file_chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """What is left of the file, which is closed at the end."""
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
