"""Tables of the server beside the queue's, in the same database. Times are Unix seconds."""

import sqlalchemy as sa

from lamella.jobs.tables import METADATA, json_type, number_type

__all__ = ["METADATA", "audit", "owner", "tokens", "uploads", "volumes"]

# One row: the server whose database this is.
owner = sa.Table(
    "owner",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    # A key made of the secret of its data folder, hexadecimal.
    sa.Column("fingerprint", sa.String(64), nullable=False),
    # For people: where that folder is.
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("data_dir", sa.Text, nullable=False),
    sa.Column("since", sa.Float(53), nullable=False),
)

tokens = sa.Table(
    "tokens",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("user", sa.String(64), nullable=False, index=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("scopes", json_type(), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    # HMAC-SHA-256 of the secret, hexadecimal; the secret is kept nowhere.
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("expires", sa.Float(53)),
    sa.Column("last_used", sa.Float(53)),
    sa.Column("revoked", sa.Float(53)),
)

uploads = sa.Table(
    "uploads",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    # open, finished, rejected, joined (part of another one that is finished)
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("n_bytes", sa.BigInteger),
    sa.Column("metadata", json_type(), nullable=False),
    sa.Column("is_partial", sa.Boolean, nullable=False),
    sa.Column("parts", json_type()),
    sa.Column("joined", sa.String(32)),
    sa.Column("volume", sa.String(32)),
    sa.Column("sha256", sa.String(64)),
    sa.Column("problem", json_type()),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("expires", sa.Float(53), index=True),
    sa.Column("idempotency_key", sa.String(255)),
    sa.UniqueConstraint("owner", "idempotency_key"),
)

volumes = sa.Table(
    "volumes",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    # preparing, ready, refused
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("source", json_type(), nullable=False),
    # Below the data folder's `volumes/ID`, or an absolute path of the server.
    sa.Column("location", sa.Text),
    sa.Column("n_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64)),
    # Geometry, dtype and notes, as documents.
    sa.Column("facts", json_type()),
    sa.Column("problem", json_type()),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("last_used", sa.Float(53), nullable=False),
    sa.Column("pyramid", sa.Text),
)

audit = sa.Table(
    "audit",
    METADATA,
    sa.Column("number", number_type(), primary_key=True, autoincrement=True),
    sa.Column("at", sa.Float(53), nullable=False, index=True),
    sa.Column("user", sa.String(64), index=True),
    sa.Column("token", sa.String(32)),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(255), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("details", json_type()),
    sqlite_autoincrement=True,
)
