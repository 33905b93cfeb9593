"""Aliases with two versions, every alias's history, and numbers that are never given out twice."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column(
        "adapters", sa.Column("last_number", sa.Integer, nullable=False, server_default="0")
    )
    op.execute(
        "UPDATE adapters SET last_number = "
        "(SELECT max(number) FROM versions WHERE versions.adapter_id = adapters.id)"
    )
    op.create_table(
        "canaries",
        sa.Column("adapter_id", sa.Integer, primary_key=True),
        sa.Column("tag", sa.String(63), primary_key=True),
        sa.Column(
            "version_id",
            sa.Integer,
            sa.ForeignKey("versions.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("weight", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id", "tag"], ["aliases.adapter_id", "aliases.tag"], ondelete="CASCADE"
        ),
    )
    op.create_table(
        "alias_moves",
        sa.Column(
            "adapter_id",
            sa.Integer,
            sa.ForeignKey("adapters.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("tag", sa.String(63), primary_key=True),
        sa.Column("move", sa.Integer, primary_key=True),
        sa.Column("cause", sa.String(15), nullable=False),
        sa.Column("restores", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer),
        sa.Column("digest", sa.String(64)),
        sa.Column("canary_number", sa.Integer),
        sa.Column("canary_digest", sa.String(64)),
        sa.Column("canary_weight", sa.Float),
        sa.Column("moved_at", sa.BigInteger, nullable=False),
    )
    # The history of a catalog that kept none begins with what its names mean now.
    op.execute(
        "INSERT INTO alias_moves (adapter_id, tag, move, cause, restores, number, digest, moved_at)"
        " SELECT aliases.adapter_id, aliases.tag, 1, 'upload', 1, versions.number,"
        " versions.digest, versions.created_at"
        " FROM aliases JOIN versions ON versions.id = aliases.version_id"
    )
