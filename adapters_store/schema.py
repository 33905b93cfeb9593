"""The catalog's tables. Plain SQL types, so that SQLite and PostgreSQL hold the same.

Here: tables, as the newest migration leaves them; a test compares the two. Not here: queries,
connections, how older catalogs become this (migrations/).
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
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
    # The highest version number ever given out: a deleted version's is never given to another.
    Column("last_number", Integer, nullable=False, server_default="0"),
    UniqueConstraint("base", "name"),
    sqlite_autoincrement=True,  # no id is given twice: llama.cpp's clients name adapters by it
)

versions = Table(
    "versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # 1, 2, 3… within the adapter; deleted ones lack
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

# The second version of an alias that has two, and which share of requests it gets.
canaries = Table(
    "canaries",
    metadata,
    Column("adapter_id", Integer, primary_key=True),
    Column("tag", String(63), primary_key=True),
    Column("version_id", ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
    Column("weight", Float, nullable=False),  # 0 < weight < 1
    ForeignKeyConstraint(
        ["adapter_id", "tag"], ["aliases.adapter_id", "aliases.tag"], ondelete="CASCADE"
    ),
)

# What every alias meant, move by move. Numbers and digests are copies: a move is remembered after
# its version was deleted.
alias_moves = Table(
    "alias_moves",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(63), primary_key=True),
    Column("move", Integer, primary_key=True),  # 1, 2, 3… of this alias
    Column("cause", String(15), nullable=False),  # "upload", "move", "rollback", "delete"
    Column("restores", Integer, nullable=False),  # the move whose state this is; of most, itself
    Column("number", Integer),  # of the version; NULL: the alias was removed
    Column("digest", String(64)),
    Column("canary_number", Integer),
    Column("canary_digest", String(64)),
    Column("canary_weight", Float),
    Column("moved_at", BigInteger, nullable=False),  # Unix seconds
)

files = Table(
    "files",
    metadata,
    Column("id", String(63), primary_key=True),  # "file-" and hex digits
    Column("owner", String(255), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(31), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),  # Unix seconds
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(63), primary_key=True),  # "ftjob-" and hex digits
    Column("base", String(255), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("status", String(15), nullable=False, index=True),
    Column("wish", String(15), nullable=False, server_default=""),  # "", "pause", "cancel"
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("error", Text),
    Column("result", JSON),
    Column("progress", JSON),
    Column("created_at", BigInteger, nullable=False, index=True),  # Unix seconds, as the next two
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("fence", Integer, nullable=False, server_default="0"),  # rises with every claim
    Column("worker", String(255)),  # who has the job; NULL unless it is running
    Column("lease_until", Float),  # Unix seconds
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("level", String(15), nullable=False),  # "info", "warn", "error"
    Column("message", Text, nullable=False),
    Column("data", JSON),
    Column("created_at", BigInteger, nullable=False),  # Unix seconds
    sqlite_autoincrement=True,  # a page of events that follows one never misses any
)

# Of a running job: what another worker goes on from.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(63), primary_key=True),  # "ftckpt-" and hex digits; its object's key
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("step", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("sha256", String(64)),  # of the object; NULL once it is removed
    Column("created_at", BigInteger, nullable=False),  # Unix seconds
)
