"""Which databases a catalog may be in, and what is PostgreSQL's own: locks, isolation, errors.

Here: catalog_url, postgresql_engine, what a database's errors mean. Not here: tables, queries,
SQLite's settings (database.py).

A write transaction takes one advisory lock first, so that no two overlap, whichever process or
machine they are in, and runs READ COMMITTED: under anything stricter its snapshot would be the
lock statement's own, from before the writer that it waited for had committed. Reads take no lock
and are REPEATABLE READ: all queries of one transaction see the same moment, as on SQLite.
"""

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as NoFreeConnection

from adapters_store.errors import AdapterdError, StoreCorrupt, Unavailable
from adapters_store.urls import without_secrets

UNREACHABLE = (OperationalError, InterfaceError, NoFreeConnection)
WRITE_LOCK = int.from_bytes(b"adapterd")  # pg_advisory_xact_lock's key; locks are per database
GONE_MS = 300_000  # a write transaction idle for so long is ended: its machine may have vanished

# libpq's, where the URL says nothing else: a host that drops packets is noticed in seconds.
_CONNECTION = {"connect_timeout": "5", "tcp_user_timeout": "10000", "application_name": "adapterd"}
_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
}


def catalog_url(text: URL | str) -> URL:
    """The URL with its driver. Raises ValueError if it is neither PostgreSQL's nor SQLite's."""
    try:
        url = make_url(text)
        return url.set(drivername=_DRIVERS[url.drivername])
    except (ArgumentError, KeyError, ValueError):
        raise ValueError(
            f"the catalog {without_secrets(str(text))} cannot be opened: a URL such as "
            "postgresql://USER:PASSWORD@HOST/DATABASE is wanted, or sqlite:////PATH"
        ) from None


def postgresql_engine(url: URL, *, busy_timeout_ms: int) -> Engine:
    """An engine whose write transactions (option `adapterd_write`) take turns.

    Connects to nothing yet. Raises ValueError if the driver is not installed.
    """
    given = {key: value for key, value in _CONNECTION.items() if key not in url.query}
    try:
        engine = create_engine(
            url,
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,  # after a restart of the database, say
            pool_timeout=busy_timeout_ms / 1000,
            connect_args=given,
        )
    except ImportError:
        raise ValueError(
            f"the catalog {shown(url)} cannot be opened: install adapterd[postgres]"
        ) from None

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("adapterd_write", False):
            for statement in (
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
                f"SET LOCAL lock_timeout = {busy_timeout_ms}",
                f"SET LOCAL idle_in_transaction_session_timeout = {GONE_MS}",
                f"SELECT pg_advisory_xact_lock({WRITE_LOCK})",
            ):
                connection.exec_driver_sql(statement)

    event.listen(engine, "begin", begin)
    return engine


def unreachable(url: URL, error: SQLAlchemyError) -> Unavailable:
    """For the errors in UNREACHABLE: trying again later can help."""
    where = f" at {shown(url)}" if url.get_backend_name() == "postgresql" else ""
    return Unavailable(f"the catalog{where} cannot answer now: {_reason(error)}")


def unusable(url: URL, error: DBAPIError) -> AdapterdError:
    """For a database that answers, but not as a catalog can be opened."""
    if url.get_backend_name() == "postgresql":
        return Unavailable(
            f"the catalog at {shown(url)} cannot be opened: {_reason(error)}; its user must be "
            "allowed to make tables there"
        )
    return StoreCorrupt(
        f"the catalog at {url.database} cannot be read: {error.orig}; "
        "restore it from a copy, or start with another data directory"
    )


def shown(url: URL) -> str:
    """As anybody may read it."""
    return without_secrets(url.render_as_string(hide_password=True))


def _reason(error: Any) -> str:
    """The driver's first line: the rest are hints for whoever administers the database."""
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__
