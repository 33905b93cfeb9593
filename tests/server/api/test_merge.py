"""Several streams as one: nothing lost, everything closed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from server.api.merge import merged


class Streams:
    """Generators that note when they are closed."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def make(self, name: str, count: int, fail: bool = False) -> AsyncGenerator[str]:
        try:
            for number in range(count):
                await asyncio.sleep(0)
                yield f"{name}{number}"
            if fail:
                raise RuntimeError(name)
            if count == 0:
                await asyncio.Event().wait()
        finally:
            self.closed.append(name)


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
async def test_all_of_each_in_order(names: str):
    streams = Streams()
    got = [item async for item in merged([streams.make(name, 3) for name in names])]
    assert sorted(got) == [f"{name}{number}" for name in names for number in range(3)]
    for name in names:
        assert [item for item in got if item[0] == name] == [f"{name}{n}" for n in range(3)]
    assert sorted(streams.closed) == list(names)


@pytest.mark.parametrize("others", [0, 1, 3])
async def test_an_error_closes_the_rest(others: int):
    streams = Streams()
    rest = [streams.make(f"w{number}", 0) for number in range(others)]
    with pytest.raises(RuntimeError, match="bad"):
        async for _ in merged([streams.make("bad", 2, fail=True), *rest]):
            pass
    assert len(streams.closed) == 1 + others


@pytest.mark.parametrize("others", [0, 2])
async def test_closing_closes_them_all(others: int):
    streams = Streams()
    rest = [streams.make(f"w{number}", 0) for number in range(others)]
    async with aclosing(merged([streams.make("a", 9), *rest])) as stream:
        assert await anext(stream) == "a0"
    assert len(streams.closed) == 1 + others


async def test_cancelling_closes_them_all():
    streams = Streams()

    async def follow() -> None:
        async with aclosing(merged([streams.make(name, 0) for name in "ab"])) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(streams.closed) == ["a", "b"]
