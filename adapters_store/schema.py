"""The catalog's tables. Plain SQL types, so that SQLite and PostgreSQL hold the same.

Here: tables. Not here: queries, connections.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

CURRENT = ""  # the tag of the alias that is an adapter's bare name

metadata = MetaData()

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("base", String(255), nullable=False),
    Column("name", String(63), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False),  # Unix seconds
    UniqueConstraint("base", "name"),
    sqlite_autoincrement=True,  # no id is given twice: llama.cpp's clients name adapters by it
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, 2, 3… within the adapter
    Column("digest", String(64), nullable=False, index=True),
    Column("kind", String(63), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("target_modules", JSON, nullable=False),  # list of leaf names
    Column("bytes", BigInteger, nullable=False),  # of its tensors
    Column("report", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("adapter_id", "number"),
    UniqueConstraint("adapter_id", "digest"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(63), primary_key=True),  # CURRENT, or a tag of its own
    Column("version_id", ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
)
