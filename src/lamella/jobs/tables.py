"""Tables of the queue. Times are Unix seconds."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

__all__ = ["METADATA", "batches", "jobs", "json_type", "number_type", "users"]

METADATA = sa.MetaData(
    # Names that do not depend on the database: migrations can refer to them.
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def number_type() -> TypeEngine[Any]:
    """Of an automatic number: SQLite counts only INTEGER by itself."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def json_type() -> TypeEngine[Any]:
    """Of a JSON value; None is NULL."""
    return sa.JSON(none_as_null=True)


batches = sa.Table(
    "batches",
    METADATA,
    sa.Column("number", number_type(), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sqlite_autoincrement=True,
)

jobs = sa.Table(
    "jobs",
    METADATA,
    # The order of submission; never used twice, so that a cursor stays valid.
    sa.Column("number", number_type(), primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("spec", json_type(), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("batch", sa.String(32), sa.ForeignKey("batches.id", ondelete="SET NULL")),
    sa.Column("volume", sa.String(32)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    # Canonical JSON text: jobs that need the same are one group.
    sa.Column("resources", sa.String(255), nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("queued", sa.Float(53), nullable=False),
    sa.Column("started", sa.Float(53)),
    sa.Column("finished", sa.Float(53)),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(255)),
    sa.Column("lease_until", sa.Float(53)),
    sa.Column("problem", json_type()),
    sa.Column("result", json_type()),
    sa.Column("progress", json_type()),
    sa.Column("marks", json_type(), nullable=False),
    sa.Column("n_interruptions", sa.Integer, nullable=False),
    sa.Column("run_s", sa.Float(53), nullable=False),
    sa.Column("cost", sa.Float(53)),
    sa.Column("estimate_key", sa.String(128), nullable=False),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index(None, "state", "owner", "resources", "priority", "number"),
    sa.Index(None, "owner", "number"),
    sa.Index(None, "batch"),
    sa.Index(None, "volume"),
    sa.Index(None, "estimate_key", "state", "finished"),
    sqlite_autoincrement=True,
)

users = sa.Table(
    "users",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    # Share of the machine where several users wait: 2 gets twice as much as 1.
    sa.Column("weight", sa.Float(53), nullable=False),
    # NULL: the server's own limit.
    sa.Column("max_queued", sa.Integer),
    sa.Column("max_running", sa.Integer),
    sa.Column("quota_bytes", sa.BigInteger),
    # Seconds of running jobs, halved for every half-life that passed since `usage_time`.
    sa.Column("usage_s", sa.Float(53), nullable=False),
    sa.Column("usage_time", sa.Float(53), nullable=False),
)
