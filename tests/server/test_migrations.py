"""What the versions of the schema make is what the tables say, on every database."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from lamella.core.errors import ConflictError
from lamella.jobs.database import open_database
from lamella.jobs.machine import NewJob
from lamella.jobs.store import JobStore
from lamella.server import migrations
from lamella.server.migrations import head, known_versions, migrate, schema_version
from lamella.server.tables import METADATA


@pytest.fixture
def database(database_url):
    database = open_database(database_url)
    yield database
    database.close()


def upgrade_from_empty(database):
    with database.begin() as connection:
        migrations._upgrade(connection)


def describe(database):
    """Everything about the tables that matters, in an order that does not."""
    with database.read() as connection:
        inspector = sa.inspect(connection)
        return {
            table: {
                "columns": {
                    column["name"]: (
                        str(column["type"]),
                        column["nullable"],
                        # The default of an automatic number names its sequence.
                        bool(column.get("default")) or column.get("autoincrement") is True,
                    )
                    for column in inspector.get_columns(table)
                },
                "key": inspector.get_pk_constraint(table)["constrained_columns"],
                "unique": sorted(
                    (str(item["name"]), tuple(item["column_names"]))
                    for item in inspector.get_unique_constraints(table)
                ),
                "indexes": sorted(
                    (str(item["name"]), tuple(map(str, item["column_names"])), bool(item["unique"]))
                    for item in inspector.get_indexes(table)
                ),
                "references": sorted(
                    (
                        str(item["name"]),
                        tuple(item["constrained_columns"]),
                        item["referred_table"],
                        str(item["options"].get("ondelete")),
                    )
                    for item in inspector.get_foreign_keys(table)
                ),
            }
            for table in sorted(inspector.get_table_names())
            if table != "alembic_version"
        }


def clear(database):
    with database.begin() as connection:
        METADATA.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))


def test_versions_make_what_the_tables_say(database):
    upgrade_from_empty(database)
    by_versions = describe(database)
    clear(database)
    METADATA.create_all(database.engine)
    assert by_versions == describe(database)
    assert set(by_versions) == set(METADATA.tables)


def test_alembic_sees_no_difference(database):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    upgrade_from_empty(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_an_empty_database_gets_the_newest_version_once(database):
    assert schema_version(database) is None
    assert migrate(database)
    assert schema_version(database) == head()
    assert not migrate(database)


def test_upgraded_and_made_at_once_have_the_same_version(database):
    upgrade_from_empty(database)
    assert schema_version(database) == head()


def test_jobs_survive_an_upgrade_that_does_nothing(database):
    migrate(database)
    job, _ = JobStore(database).add(NewJob(owner="ada", kind="segment", spec={"a": 1}))
    migrate(database)
    assert JobStore(database).get(job.id) == job


def test_versions_are_a_chain_that_alembic_reads():
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    found = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(found)) == known_versions()


def test_a_newer_schema_is_refused(database):
    migrate(database)
    with database.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConflictError, match=r"schema 9999.*newer") as refused:
        migrate(database)
    assert "newer version" in str(refused.value.hint)
    assert refused.value.details == {"schema": "9999", "newest_known": head()}


def test_tables_of_something_else_are_not_touched(database):
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE jobs (what INTEGER)"))
    with pytest.raises(ConflictError, match="no version of a schema: jobs"):
        migrate(database)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == ["jobs"]


def test_an_upgrade_that_fails_leaves_nothing(database, monkeypatch):
    def fail(connection):
        connection.execute(sa.text("CREATE TABLE half (a INTEGER)"))
        raise RuntimeError("power")

    monkeypatch.setattr(migrations, "_create", fail)
    with pytest.raises(RuntimeError, match="power"):
        migrate(database)
    with database.read() as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_servers_that_start_at_once_migrate_once(database_url):
    code = (
        "import sys\n"
        "from lamella.jobs.database import open_database\n"
        "from lamella.server.migrations import migrate\n"
        f"database = open_database({database_url!r})\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(migrate(database))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        did = [process.communicate(timeout=60)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert sorted(did) == ["False", "False", "True"]


def test_alembic_is_not_imported_for_a_database_that_is_up_to_date(tmp_path):
    code = (
        "import sys\n"
        "from lamella.jobs.database import open_database\n"
        "from lamella.server.migrations import migrate\n"
        f"database = open_database('sqlite:///{tmp_path}/a.db')\n"
        "assert migrate(database) and not migrate(database)\n"
        "assert 'alembic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
