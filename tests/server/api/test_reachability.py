"""What readiness says of the store and its catalog, and how seldom it asks."""

import asyncio
import shutil
import threading
from dataclasses import replace

import pytest

from adapters_store.errors import StoreCorrupt, Unavailable
from server.api.reachability import Reachability
from tests.server.api.conftest import House, until


class Store:
    """Answers as told, and counts how often it was asked, and in which threads."""

    def __init__(self) -> None:
        self.asked = 0
        self.threads: set[int] = set()
        self.fault: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def probe(self) -> None:
        self.asked += 1
        self.threads.add(threading.get_ident())
        self.open.wait(30)
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def store():
    made = Store()
    yield made
    made.open.set()  # no thread is left behind


async def test_it_asks_once_in_a_while_and_not_on_the_event_loop(store):
    reachability = Reachability(store.probe, every_s=3600)
    for _ in range(5):
        await asyncio.gather(*(reachability.check() for _ in range(5)))
    assert store.asked == 1
    assert threading.get_ident() not in store.threads


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Unavailable("the store at s3://bucket cannot answer now"), "s3://bucket"),
        (StoreCorrupt("the catalog is gone"), "catalog"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError"),
    ],
)
async def test_what_is_away_is_said_until_it_is_back(store, fault, says):
    reachability = Reachability(store.probe, every_s=0)
    await reachability.check()
    store.fault = fault
    for _ in range(2):
        with pytest.raises(Unavailable, match=says):
            await reachability.check()
    store.fault = None
    await reachability.check()


async def test_one_that_hangs_is_asked_once_and_waited_for_no_longer_than_patience(store):
    reachability = Reachability(store.probe, every_s=0, patience_s=0.01, lost_s=0)
    store.open.clear()
    for _ in range(3):
        with pytest.raises(Unavailable, match="does not answer"):
            await reachability.check()
    await until(lambda: store.asked)
    store.open.set()
    await until(lambda: reachability._question is None)
    assert store.asked == 1
    await reachability.check()


async def test_one_that_is_only_late_is_ready_as_before(store):
    reachability = Reachability(store.probe, every_s=0, patience_s=0.01, lost_s=3600)
    await reachability.check()
    store.open.clear()
    await reachability.check()
    await until(lambda: store.asked == 2)
    store.open.set()  # the loop's end waits for its threads


async def test_without_its_store_a_server_is_alive_and_not_ready(house: House):
    assert (await house.client.get("/health/ready")).status_code == 200
    impatient = Reachability(house.store.probe, every_s=0)
    house.app.state.services = replace(house.app.state.services, reachability=impatient)
    shutil.rmtree(house.store.blob_root)
    for path in ("/health/ready", "/health"):
        reply = await house.client.get(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert str(house.store.blob_root) in reply.json()["error"]["message"]
        assert reply.headers["retry-after"]
    assert (await house.client.get("/health/live")).status_code == 200
