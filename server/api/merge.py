"""Several async generators as one. Nothing here knows what they carry."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item]]) -> AsyncGenerator[Item]:
    """Each stream's items as they come. Closing this, or an error in one, closes them all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield item
        return
    pulls = {asyncio.ensure_future(_next(stream)): stream for stream in streams}
    try:
        while pulls:
            done, _ = await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED)
            for pull in done:
                stream = pulls.pop(pull)
                try:
                    item = pull.result()
                except StopAsyncIteration:
                    continue
                pulls[asyncio.ensure_future(_next(stream))] = stream
                yield item
    finally:
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[Item]) -> Item:
    return await anext(stream)
