import sqlite3
import threading
import time

import pytest

from adapters_store.catalog import Catalog
from adapters_store.content import AdapterFacts
from adapters_store.database import Database
from adapters_store.errors import StoreCorrupt

FACTS = AdapterFacts("lora", 8, ("k_proj", "q_proj"), 1234, {"matched": 4, "norms": [0.5]})


def digest(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql_url")
    return f"sqlite:///{tmp_path / 'catalog.sqlite3'}"


on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@pytest.fixture
def catalog(url):
    opened = Catalog(Database(url), base="demo")
    yield opened
    opened.close()


def add(catalog: Catalog, name: str, number: int, owner: str = "default"):
    with catalog.write() as writer:
        return writer.add_version(name, digest(number), FACTS, owner=owner)


def test_records_come_back_as_they_went_in(catalog, url):
    before = int(time.time())
    first = add(catalog, "b", 1, owner="me")
    second = add(catalog, "b", 2, owner="me")
    add(catalog, "a", 1)
    assert (first.number, second.number) == (1, 2)
    again = Catalog(Database(url), base="demo")
    assert again.versions("b") == (first, second)
    assert again.version("b", 1) == first
    record = again.adapter("b")
    assert record is not None
    assert (record.name, record.base, record.owner, record.versions) == ("b", "demo", "me", 2)
    assert record.current == second
    assert second.facts == FACTS
    assert before <= record.created_at <= second.created_at <= time.time()
    again.close()
    catalog.check()


@on_sqlite
def test_a_file_that_is_no_database(url, tmp_path):
    path = tmp_path / "catalog.sqlite3"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(StoreCorrupt, match="not a database") as refused:
        Catalog(Database(url), base="demo")
    assert str(path) in refused.value.message
    assert path.read_bytes() == b"no database" * 100


def test_what_is_not_there(catalog):
    add(catalog, "a", 1)
    assert catalog.adapter("b") is None
    assert catalog.version("a", 2) is None
    assert catalog.versions("b") == ()
    assert catalog.versions_by_digest("b", digest(1)[:8]) == ()


def test_a_write_that_raises_leaves_nothing(catalog):
    def fail() -> None:
        with catalog.write() as writer:
            writer.add_version("a", digest(1), FACTS, owner="default")
            assert writer.adapter("a") is not None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert catalog.adapter("a") is None


def test_lists_by_name_page_by_page(catalog):
    names = [f"n{number}" for number in range(7)]
    for name in reversed(names):
        add(catalog, name, 1)
    found = [record.name for record in catalog.list(limit=3, after=None)]
    found += [record.name for record in catalog.list(limit=100, after="n2")]
    assert found == names


def test_bases_do_not_see_each_other(catalog, url):
    other = Catalog(Database(url), base="other")
    add(catalog, "a", 1)
    add(other, "a", 2)
    assert [v.digest for v in catalog.versions("a")] == [digest(1)]
    with catalog.write() as writer:
        writer.delete_adapter("a")
        assert writer.unreferred([digest(1), digest(2), digest(3)]) == (digest(1), digest(3))
    assert other.adapter("a") is not None
    assert catalog.list(limit=10, after=None) == ()
    assert catalog.check() == (digest(2),)
    other.close()


def test_deleting_a_name_takes_its_rows_along(catalog):
    add(catalog, "a", 1)
    add(catalog, "a", 2)
    with catalog.write() as writer:
        assert [one.digest for one in writer.versions("a")] == [digest(1), digest(2)]
        writer.delete_adapter("a")
    with catalog._database.read() as connection:
        for table in ("adapters", "versions", "aliases", "canaries", "alias_moves"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
    assert add(catalog, "a", 1).number == 1


def test_prefixes_match_at_most_twice(catalog):
    for number in range(3):
        add(catalog, "a", number)
    assert len(catalog.versions_by_digest("a", "0" * 8)) == 2
    assert [v.number for v in catalog.versions_by_digest("a", digest(2))] == [3]


@on_sqlite
def test_sqlite_runs_as_the_module_says(catalog):
    with catalog._database.read() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "delete",
        "synchronous": 3,  # EXTRA
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }


def test_writers_of_two_connections_take_turns(catalog, url):
    """Each reads the last number and adds one: without turns, numbers would collide."""
    other = Catalog(Database(url), base="demo")
    faults: list[BaseException] = []

    def work(mine: Catalog, offset: int) -> None:
        try:
            for number in range(15):
                add(mine, "a", offset + number)
        except BaseException as fault:
            faults.append(fault)

    threads = [
        threading.Thread(target=work, args=(mine, 100 * index))
        for index, mine in enumerate((catalog, other, catalog))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert [version.number for version in catalog.versions("a")] == list(range(1, 46))
    catalog.check()
    other.close()


@on_sqlite
def test_check_finds_each_broken_promise(catalog, tmp_path):
    breaks = [
        "DELETE FROM aliases WHERE adapter_id = 1",
        "DELETE FROM versions WHERE adapter_id = 1",
        "UPDATE adapters SET last_number = 1 WHERE id = 1",
        "INSERT INTO canaries VALUES (1, '', 3, 0.5)",
        "UPDATE aliases SET version_id = 3 WHERE adapter_id = 1",
        "DELETE FROM adapters WHERE id = 1",
    ]
    add(catalog, "a", 1)
    add(catalog, "a", 2)
    add(catalog, "b", 3)
    catalog.check()
    for statement in breaks:
        raw = sqlite3.connect(tmp_path / "catalog.sqlite3")
        saved = "\n".join(raw.iterdump())
        raw.execute(statement)
        raw.commit()
        with pytest.raises(AssertionError):
            catalog.check()
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        for (table,) in raw.execute(tables).fetchall():
            raw.execute(f"DROP TABLE {table}")
        raw.executescript(saved)
        raw.close()
        catalog.check()
