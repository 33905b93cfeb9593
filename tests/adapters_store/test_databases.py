import threading
import time

import pytest
from sqlalchemy import make_url

from adapters_store import database as database_module
from adapters_store.catalog import Catalog
from adapters_store.content import AdapterFacts
from adapters_store.database import Database
from adapters_store.databases import WRITE_LOCK, catalog_url, shown
from adapters_store.errors import Unavailable
from tests.support.door import Door
from tests.support.servers import PASSWORD

FACTS = AdapterFacts("lora", 8, ("q_proj",), 1234)


@pytest.fixture
def catalog(postgresql_url):
    opened = Catalog(Database(postgresql_url), base="demo")
    yield opened
    opened.close()


def add(catalog: Catalog, number: int) -> int:
    with catalog.write() as writer:
        return writer.add_version("a", f"{number:064x}", FACTS, owner="default").number


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("postgresql://me@host/db", "postgresql+psycopg"),
        ("postgres://me@host/db", "postgresql+psycopg"),
        ("postgresql+psycopg://me@host/db?connect_timeout=1", "postgresql+psycopg"),
        ("sqlite:////tmp/x", "sqlite"),
    ],
)
def test_a_driver_need_not_be_said(text, driver):
    url = catalog_url(text)
    assert url.drivername == driver
    assert url.database == make_url(text).database
    assert url.query == make_url(text).query


@pytest.mark.parametrize("text", ["mysql://me:secret@host/db", "me:secret", "", "postgresql:/x"])
def test_other_urls_are_refused_without_their_password(text):
    with pytest.raises(ValueError, match="postgresql://USER") as refused:
        catalog_url(text)
    assert text == "me:secret" or "secret" not in str(refused.value)


def test_transactions_are_as_the_module_says(catalog):
    with catalog.write() as writer:
        ask = writer.connection.exec_driver_sql
        assert ask("SHOW transaction_isolation").scalar() == "read committed"
        assert ask("SHOW lock_timeout").scalar() == "10s"
        key = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks"
        assert ask(f"{key} WHERE locktype = 'advisory'").scalars().all() == [WRITE_LOCK]
        with catalog._database.read() as reading:
            isolation = reading.exec_driver_sql("SHOW transaction_isolation").scalar()
            assert isolation == "repeatable read"
            assert reading.exec_driver_sql("SHOW lock_timeout").scalar() == "0"


def test_a_reader_sees_one_moment_and_waits_for_no_writer(catalog):
    add(catalog, 1)
    count = "SELECT count(*) FROM versions"
    with catalog._database.read() as reading:
        assert reading.exec_driver_sql(count).scalar() == 1
        assert add(catalog, 2) == 2
        assert reading.exec_driver_sql(count).scalar() == 1
    assert len(catalog.versions("a")) == 2


def test_a_writer_sees_what_the_one_that_it_waited_for_has_written(catalog, postgresql_url):
    other = Catalog(Database(postgresql_url), base="demo")
    numbers: list[int] = []
    with catalog.write() as writer:
        waiting = threading.Thread(target=lambda: numbers.append(add(other, 2)))
        waiting.start()
        wait_for_a_waiter(catalog)
        writer.add_version("a", f"{1:064x}", FACTS, owner="default")
    waiting.join()
    assert numbers == [2]
    other.close()


def wait_for_a_waiter(catalog: Catalog) -> None:
    """Until some connection waits for the write lock."""
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with catalog._database.read() as connection:
            if connection.exec_driver_sql(waits).scalar():
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


def test_a_writer_that_waits_too_long_is_told(catalog, postgresql_url, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 100)
    other = Catalog(Database(postgresql_url), base="demo")
    with catalog.write(), pytest.raises(Unavailable, match="lock timeout"):
        add(other, 1)
    assert add(other, 1) == 1
    other.close()


def test_two_that_start_at_once_make_the_tables_once(postgresql_url):
    opened: list[Catalog] = []

    def start() -> None:
        opened.append(Catalog(Database(postgresql_url), base="demo"))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for one in opened:
        one.check()
        one.close()


def test_while_the_database_is_away_it_is_unavailable_and_then_works_again(
    postgresql, postgresql_url
):
    database = make_url(postgresql_url).database or ""
    with Door(postgresql.port) as door:
        catalog = Catalog(Database(postgresql.url(database, port=door.port)), base="demo")
        add(catalog, 1)
        door.shut()
        for refused in (lambda: catalog.adapter("a"), lambda: add(catalog, 2)):
            with pytest.raises(Unavailable) as away:
                refused()
            assert f"127.0.0.1:{door.port}" in away.value.message
            assert "\n" not in away.value.message
            assert_no_password(away.value.message)
        door.open()
        assert add(catalog, 2) == 2
        catalog.close()


def test_a_connection_lost_within_a_write_leaves_nothing(postgresql, postgresql_url):
    database = make_url(postgresql_url).database or ""
    with Door(postgresql.port) as door:
        catalog = Catalog(Database(postgresql.url(database, port=door.port)), base="demo")

        def lose_it() -> None:
            with catalog.write() as writer:
                writer.add_version("a", f"{1:064x}", FACTS, owner="default")
                door.shut()

        with pytest.raises(Unavailable):
            lose_it()
        door.open()
        assert catalog.adapter("a") is None
        assert add(catalog, 2) == 1  # nobody holds the lock any more
        catalog.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"password": "a wrong one"}, "password authentication failed"),
        ({"database": "nowhere"}, "nowhere"),
        ({"port": 1}, "refused"),
    ],
)
def test_a_database_that_cannot_be_had_is_told_without_the_password(postgresql_url, change, says):
    url = make_url(postgresql_url).set(**change)
    with pytest.raises(Unavailable, match=says) as away:
        Catalog(Database(url), base="demo")
    assert_no_password(away.value.message)
    assert "wrong" not in away.value.message


def test_a_user_who_may_make_no_tables_is_told(postgresql, postgresql_url):
    url = make_url(postgresql_url)
    make_reader = "CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA public TO reader"
    postgresql.run(make_reader, url.database or "")
    with pytest.raises(Unavailable, match=r"permission denied.*make tables"):
        Catalog(Database(url.set(username="reader", password="x")), base="demo")


def test_a_url_is_shown_without_secrets(postgresql_url):
    text = shown(catalog_url(postgresql_url + "?sslpassword=hush"))
    assert_no_password(text)
    assert "hush" not in text
    assert "postgres:***@127.0.0.1" in text


def assert_no_password(text: str) -> None:
    for form in (PASSWORD, "open+sesame", "open%20sesame", "sesame"):
        assert form not in text
