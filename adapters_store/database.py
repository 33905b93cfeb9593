"""The database behind the catalog, opened and brought up to date: transactions, and no queries.

Here: Database. Not here: tables (schema.py), what is read and written (catalog.py), what is
PostgreSQL's own (databases.py).

SQLite runs with journal_mode=DELETE and synchronous=EXTRA, not WAL: a WAL database with several
connections checkpointing at once could be corrupted before SQLite 3.51.3, and Python ships older
ones. Writes here are rare and small, so WAL's gain is not needed; EXTRA also syncs the folder
after the journal is removed, without which a power cut could bring a committed write's journal
back and undo it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError

from adapters_store.databases import (
    UNREACHABLE,
    catalog_url,
    postgresql_engine,
    unreachable,
    unusable,
)
from adapters_store.errors import AdapterdError
from adapters_store.migrations import upgrade

BUSY_TIMEOUT_MS = 10_000


class Database:
    """Transactions on one database. Safe from several threads and processes."""

    def __init__(self, url: URL | str) -> None:
        """Makes the tables, or brings an older version's to this one's.

        `url`: SQLite's or PostgreSQL's. Raises Unavailable, StoreCorrupt, ValueError (a URL of
        neither).
        """
        self._engine = _engine(url)
        self._writing = threading.Lock()  # queues our threads fairly; SQLite's own wait is a poll
        try:
            with self.write() as connection:
                upgrade(connection)
        except DatabaseError as broken:
            self.close()
            raise unusable(self._engine.url, broken) from broken
        except AdapterdError:
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction, all of whose queries see the same moment. Raises Unavailable."""
        with self._begin(write=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that no other writer, in any process, overlaps; commits at the end.

        Raises Unavailable if others hold the database longer than BUSY_TIMEOUT_MS, or it is away.
        """
        with self._writing, self._begin(write=True) as connection:
            yield connection

    @contextmanager
    def _begin(self, *, write: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(adapterd_write=write)
                with connection.begin():
                    yield connection
        except UNREACHABLE as away:
            raise unreachable(self._engine.url, away) from away


def _engine(url: URL | str) -> Engine:
    url = catalog_url(url)
    if url.get_backend_name() == "postgresql":
        return postgresql_engine(url, busy_timeout_ms=BUSY_TIMEOUT_MS)
    engine = create_engine(url)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves: sqlite3 would only say DEFERRED
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=DELETE",
        "synchronous=EXTRA",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    """IMMEDIATE for writes: the lock is taken before the first read, so two never deadlock."""
    write = connection.get_execution_options().get("adapterd_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
