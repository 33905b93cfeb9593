"""Brings a catalog of any age to the tables of schema.py, by alembic, one numbered step at a time.

Here: upgrade. A change of schema.py needs a new file in versions/; a test compares the two.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, inspect

from adapters_store.databases import shown
from adapters_store.errors import StoreCorrupt

BEFORE_ALEMBIC = "0001"  # what catalogs had that were made before there were migrations


def upgrade(connection: Connection) -> None:
    """Runs what is missing, within the caller's transaction.

    Raises StoreCorrupt if a later version of this program has been here.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    tables = inspect(connection).get_table_names()
    try:
        if "adapters" in tables and "alembic_version" not in tables:
            command.stamp(config, BEFORE_ALEMBIC)
        command.upgrade(config, "head")
    except CommandError as unknown:
        raise StoreCorrupt(
            f"the catalog at {shown(connection.engine.url)} was made by a newer "
            f"adapterd: {unknown}; start that one, or name another catalog"
        ) from unknown
