"""Two replicas, as on two machines: one PostgreSQL and one S3 between them, nothing else shared."""

import threading
from contextlib import suppress

import pytest

from adapters_store.errors import AdapterNotFound, Unavailable
from adapters_store.store import AdapterStore, Published
from tests.adapters_store.builders import facts_of, folder, uploads
from tests.adapters_store.homes import Home, Objects
from tests.support.door import Door
from tests.support.servers import s3_environment


@pytest.fixture
def home(remote_place, postgresql_url, tmp_path) -> Home:
    return Home(tmp_path, remote_place, postgresql_url)


@pytest.fixture
def pair(home):
    stores = home.open_elsewhere(), home.open_elsewhere()
    yield stores
    for store in stores:
        store.check()
        store.close()


def publish(store: AdapterStore, name: str = "a", value: float = 1.0) -> Published:
    return store.publish(name, uploads(folder(value)), check=facts_of)


def test_an_upload_on_one_is_served_by_the_other_at_once(pair):
    one, other = pair
    for value in (1.0, 2.0):
        version = publish(one, "a", value).version
        assert other.resolve("a") == version
        assert other._place.reader().read(version.digest).digest == version.digest
    assert [found.number for found in other.versions("a")] == [1, 2]
    assert not publish(other, "a", 2.0).created
    one.delete("a")
    with pytest.raises(AdapterNotFound):
        other.resolve("a")


def test_what_both_publish_and_delete_at_once_stays_whole(pair, home):
    faults: list[BaseException] = []

    def churn(store: AdapterStore, value: float) -> None:
        try:
            for _ in range(6):
                publish(store, "shared", value)
                publish(store, f"own{value}", 3.0)
                with suppress(AdapterNotFound):
                    store.delete("shared")
        except BaseException as fault:
            faults.append(fault)

    threads = [
        threading.Thread(target=churn, args=(store, float(number)))
        for number, store in enumerate(pair)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    fresh = home.open_elsewhere()
    fresh.check()
    assert Objects(home.place).digests() == {fresh.resolve("own0.0").digest}
    fresh.close()


def test_each_part_that_is_away_is_named(home, s3, postgresql, postgresql_url, monkeypatch):
    database = postgresql_url.rpartition("/")[2]
    with Door(s3.port) as s3_door, Door(postgresql.port) as database_door:
        for name, value in s3_environment(s3_door.port).items():
            monkeypatch.setenv(name, value)
        store = Home(
            home.folder, home.place, postgresql.url(database, port=database_door.port)
        ).open()
        digest = publish(store).version.digest
        store.probe()
        s3_door.shut()
        with pytest.raises(Unavailable, match=home.place.url):
            store.probe()
        with pytest.raises(Unavailable, match=home.place.url):
            publish(store, "b", 2.0)
        assert store.resolve("a").digest == digest
        assert store._blobs.verified(digest).is_dir()
        with pytest.raises(AdapterNotFound):
            store.resolve("b")
        s3_door.open()
        database_door.shut()
        for refused in (store.probe, lambda: store.resolve("a"), lambda: publish(store, "b", 2.0)):
            with pytest.raises(Unavailable, match=f"postgresql.*:{database_door.port}"):
                refused()
        database_door.open()
        store.probe()
        assert publish(store, "b", 2.0).created
        store.check()
        store.close()
