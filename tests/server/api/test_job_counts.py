"""How seldom the catalog is asked for jobs, and that no scrape waits long for it."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from server.api.job_counts import JobCounts
from tests.server.api.conftest import until


class Book:
    """Answers as told, and counts how often it was asked, and in which threads."""

    def __init__(self) -> None:
        self.asked = 0
        self.threads: set[int] = set()
        self.fault: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def counts(self) -> dict[str, int]:
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.open.wait(30)
        if self.fault is not None:
            raise self.fault
        return {"queued": self.asked}


@pytest.fixture
def book() -> Iterator[Book]:
    made = Book()
    yield made
    made.open.set()  # no thread is left behind


async def test_it_asks_once_in_a_while_and_not_on_the_event_loop(book: Book):
    counts = JobCounts(book.counts, every_s=3600)
    for _ in range(3):
        found = await asyncio.gather(*(counts.latest() for _ in range(5)))
        assert found == [{"queued": 1}] * 5
    assert threading.get_ident() not in book.threads


async def test_what_is_not_known_is_not_told(book: Book):
    counts = JobCounts(book.counts, every_s=0)
    assert await counts.latest() == {"queued": 1}
    book.fault = ZeroDivisionError("a bug")
    assert await counts.latest() is None
    book.fault = None
    assert await counts.latest() == {"queued": 3}


async def test_a_catalog_that_hangs_is_asked_once_and_keeps_no_scrape(book: Book):
    counts = JobCounts(book.counts, every_s=0, patience_s=0.01)
    book.open.clear()
    for _ in range(3):
        assert await counts.latest() is None
    await until(lambda: book.asked)
    assert book.asked == 1
    book.open.set()
    await until(lambda: counts._question is None)
    assert await counts.latest() == {"queued": 2}
