"""Users, batches, jobs; owner, tokens, uploads, volumes, audit."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.Float(53)
_JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    """Make every table."""
    _users_and_batches()
    _jobs()
    _tokens_and_audit()
    _uploads_and_volumes()


def downgrade() -> None:
    """Remove every table."""
    for name in ("volumes", "uploads", "audit", "tokens", "owner", "jobs", "batches", "users"):
        op.drop_table(name)


def _users_and_batches() -> None:
    op.create_table(
        "users",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("weight", _TIME, nullable=False),
        sa.Column("max_queued", sa.Integer),
        sa.Column("max_running", sa.Integer),
        sa.Column("quota_bytes", sa.BigInteger),
        sa.Column("usage_s", _TIME, nullable=False),
        sa.Column("usage_time", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_users"),
    )
    op.create_table(
        "batches",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_batches"),
        sa.UniqueConstraint("id", name="uq_batches_id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_batches_owner_idempotency_key"),
        sqlite_autoincrement=True,
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("batch", sa.String(32)),
        sa.Column("volume", sa.String(32)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("resources", sa.String(255), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("queued", _TIME, nullable=False),
        sa.Column("started", _TIME),
        sa.Column("finished", _TIME),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(255)),
        sa.Column("lease_until", _TIME),
        sa.Column("problem", _JSON),
        sa.Column("result", _JSON),
        sa.Column("progress", _JSON),
        sa.Column("marks", _JSON, nullable=False),
        sa.Column("n_interruptions", sa.Integer, nullable=False),
        sa.Column("run_s", _TIME, nullable=False),
        sa.Column("cost", _TIME),
        sa.Column("estimate_key", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
        sa.ForeignKeyConstraint(
            ["batch"], ["batches.id"], name="fk_jobs_batch_batches", ondelete="SET NULL"
        ),
        sqlite_autoincrement=True,
    )
    for columns in (
        ("state", "owner", "resources", "priority", "number"),
        ("owner", "number"),
        ("batch",),
        ("volume",),
        ("estimate_key", "state", "finished"),
    ):
        op.create_index("_".join(("ix_jobs", *columns)), "jobs", columns)


def _tokens_and_audit() -> None:
    op.create_table(
        "owner",
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("data_dir", sa.Text, nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_owner"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("scopes", _JSON, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME),
        sa.Column("last_used", _TIME),
        sa.Column("revoked", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("hash", name="uq_tokens_hash"),
    )
    op.create_index("ix_tokens_user", "tokens", ["user"])
    op.create_table(
        "audit",
        sa.Column("number", _NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("user", sa.String(64)),
        sa.Column("token", sa.String(32)),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target", sa.String(255), nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("details", _JSON),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_user", "audit", ["user"])


def _uploads_and_volumes() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("n_bytes", sa.BigInteger),
        sa.Column("metadata", _JSON, nullable=False),
        sa.Column("is_partial", sa.Boolean, nullable=False),
        sa.Column("parts", _JSON),
        sa.Column("joined", sa.String(32)),
        sa.Column("volume", sa.String(32)),
        sa.Column("sha256", sa.String(64)),
        sa.Column("problem", _JSON),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("expires", _TIME),
        sa.Column("idempotency_key", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_uploads_owner_idempotency_key"),
    )
    op.create_index("ix_uploads_owner", "uploads", ["owner"])
    op.create_index("ix_uploads_expires", "uploads", ["expires"])
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("source", _JSON, nullable=False),
        sa.Column("location", sa.Text),
        sa.Column("n_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("facts", _JSON),
        sa.Column("problem", _JSON),
        sa.Column("created", _TIME, nullable=False),
        sa.Column("last_used", _TIME, nullable=False),
        sa.Column("pyramid", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_volumes"),
    )
    op.create_index("ix_volumes_owner", "volumes", ["owner"])
