"""The schema of the database, version by version.

A version is a file ``versions/NNNN_what.py`` (Alembic); a change of :mod:`lamella.jobs.tables` or
:mod:`lamella.server.tables` needs the next one. Tests compare what the versions make with what the
tables say, on SQLite and on PostgreSQL.

Alembic takes a third of a second to import, and is only when there is something to do: an empty
database gets its tables at once, and one that is up to date is only looked at.
"""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from lamella.core.errors import ConflictError
from lamella.jobs.database import Database
from lamella.server.tables import METADATA

__all__ = ["head", "known_versions", "migrate", "schema_version"]

_FOLDER = Path(__file__).parent
_LOCK = 0x1A3E11B
_VERSION = sa.table("alembic_version", sa.column("version_num", sa.String(32)))


def known_versions() -> tuple[str, ...]:
    """Every version of the schema that this Lamella knows, oldest first."""
    return tuple(sorted(path.name[:4] for path in (_FOLDER / "versions").glob("[0-9]*.py")))


def head() -> str:
    """The version that this Lamella needs."""
    return known_versions()[-1]


def schema_version(database: Database) -> str | None:
    """The version of a database; None for one that is empty.

    Raises:
        ConflictError: for tables that no version of Lamella made.
    """
    with database.read() as connection:
        return _version(connection)


def migrate(database: Database) -> bool:
    """Bring a database to the newest version, in one transaction; whether anything was done.

    Several servers may start at once: one of them does it, the others wait.

    Raises:
        ConflictError: for a database of a newer Lamella, or with tables of something else.
    """
    if schema_version(database) == head():
        return False
    with database.begin() as connection:
        database.lock(connection, _LOCK)
        found = _version(connection)
        if found == head():
            return False
        if found is None:
            _create(connection)
        else:
            _check_known(found)
            _upgrade(connection)
    return True


def _version(connection: Connection) -> str | None:
    names = set(sa.inspect(connection).get_table_names())
    if _VERSION.name in names:
        found = connection.execute(sa.select(_VERSION.c.version_num)).scalar()
        if found is not None:
            _check_known(found)
            return found
    if names & set(METADATA.tables):
        raise ConflictError(
            "the database has tables of these names, but no version of a schema: "
            f"{', '.join(sorted(names & set(METADATA.tables)))}",
            hint="give Lamella a database of its own (--database-url)",
        )
    return None


def _check_known(found: str) -> None:
    if found not in known_versions():
        raise ConflictError(
            f"the database has schema {found}, and this Lamella knows those up to {head()}: "
            "a newer one has used it",
            hint="start the newer version of Lamella, or give this one another database",
            details={"schema": found, "newest_known": head()},
        )


def _create(connection: Connection) -> None:
    METADATA.create_all(connection)
    version_table = sa.Table(
        "alembic_version",
        sa.MetaData(),
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
    )
    version_table.create(connection, checkfirst=True)
    connection.execute(_VERSION.insert().values(version_num=head()))


def _upgrade(connection: Connection) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    # Alembic reads % in options as a reference.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)

    def steps(found: object, _context: object) -> object:
        # What `alembic upgrade head` does, on this connection and in this transaction.
        return scripts._upgrade_revs("head", found)  # pyright: ignore[reportArgumentType]

    with EnvironmentContext(config, scripts, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=METADATA,
            # SQLite changes a table by copying it.
            render_as_batch=True,
            transactional_ddl=False,
        )
        environment.run_migrations()
