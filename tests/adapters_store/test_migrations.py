import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from adapters_store.catalog import Catalog
from adapters_store.database import Database
from adapters_store.errors import StoreCorrupt
from adapters_store.schema import metadata

FIRST = """
CREATE TABLE adapters (id INTEGER NOT NULL PRIMARY KEY, base VARCHAR(255) NOT NULL,
  name VARCHAR(63) NOT NULL, owner VARCHAR(255) NOT NULL, created_at BIGINT NOT NULL,
  UNIQUE (base, name));
CREATE TABLE versions (id INTEGER NOT NULL PRIMARY KEY,
  adapter_id INTEGER NOT NULL, number INTEGER NOT NULL,
  digest VARCHAR(64) NOT NULL, kind VARCHAR(63) NOT NULL, rank INTEGER NOT NULL,
  target_modules JSON NOT NULL, bytes BIGINT NOT NULL, report JSON NOT NULL,
  created_at BIGINT NOT NULL, UNIQUE (adapter_id, number), UNIQUE (adapter_id, digest),
  FOREIGN KEY(adapter_id) REFERENCES adapters (id) ON DELETE CASCADE);
CREATE INDEX ix_versions_digest ON versions (digest);
CREATE TABLE aliases (adapter_id INTEGER NOT NULL, tag VARCHAR(63) NOT NULL,
  version_id INTEGER NOT NULL, PRIMARY KEY (adapter_id, tag),
  FOREIGN KEY(adapter_id) REFERENCES adapters (id) ON DELETE CASCADE,
  FOREIGN KEY(version_id) REFERENCES versions (id) ON DELETE CASCADE);
INSERT INTO adapters VALUES (7, 'demo', 'a', 'me', 100);
INSERT INTO versions VALUES (1, 7, 1, 'd1', 'lora', 8, '["q_proj"]', 5, '{"matched": 2}', 101);
INSERT INTO versions VALUES (2, 7, 2, 'd2', 'lora', 4, '["q_proj"]', 6, '{}', 102);
INSERT INTO aliases VALUES (7, '', 2);
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "catalog.sqlite3"


def test_the_migrations_end_at_the_tables_that_the_queries_use(path):
    Catalog(Database(f"sqlite:///{path}"), base="demo").close()
    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_catalog_from_before_there_were_migrations_keeps_all_it_has(path):
    with sqlite3.connect(path) as raw:
        raw.executescript(FIRST)
    raw.close()
    catalog = Catalog(Database(f"sqlite:///{path}"), base="demo")
    catalog.check()
    record = catalog.adapter("a")
    assert record is not None
    assert (record.owner, record.current.digest, record.versions) == ("me", "d2", 2)
    assert catalog.versions("a")[0].facts.report == {"matched": 2}
    (move,) = catalog.moves("a", "current", limit=10)
    assert (move.cause, move.digest, move.moved_at) == ("upload", "d2", 102)
    with catalog.write() as writer:
        facts = record.current.facts
        assert writer.add_version("a", "d3", facts, owner="me").number == 3
    catalog.close()
    with create_engine(f"sqlite:///{path}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_opening_again_changes_nothing(path):
    for _ in range(2):
        Catalog(Database(f"sqlite:///{path}"), base="demo").close()


def test_a_catalog_of_a_later_program_is_left_alone(path):
    Catalog(Database(f"sqlite:///{path}"), base="demo").close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(StoreCorrupt, match="newer adapterd"):
        Catalog(Database(f"sqlite:///{path}"), base="demo")
