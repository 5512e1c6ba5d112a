"""Addresses, transactions, and what is tried again."""

import sqlite3
import threading

import pytest
import sqlalchemy as sa

from lamella.core.errors import InputError, StorageError
from lamella.jobs.database import open_database, sqlite_url
from lamella.jobs.tables import users

ROW = {"owner": "ada", "weight": 1.0, "usage_s": 0.0, "usage_time": 0.0}


@pytest.fixture(autouse=True)
def patient(monkeypatch, request):
    """Pauses between tries take no time."""
    if "database" in request.fixturenames:
        monkeypatch.setattr(request.getfixturevalue("database"), "_sleep", lambda _: None)


def n_users(database):
    with database.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(users)).scalar_one()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no address", "cannot be read"),
        ("", "cannot be read"),
        ("mysql://host/name", "got one of mysql"),
        ("sqlite://", "got a database in memory"),
        ("sqlite:///:memory:", "got a database in memory"),
    ],
)
def test_an_address_of_nothing_is_one_clear_error(url, message):
    with pytest.raises(InputError, match=message) as refused:
        open_database(url)
    assert "sqlite:////path" in refused.value.hint


def test_a_password_is_in_no_message():
    with pytest.raises(InputError) as refused:
        open_database("oops ada:secret@host")
    assert "secret" not in f"{refused.value} {refused.value.hint}"


def test_any_file_name_is_an_address(tmp_path):
    path = tmp_path / "a b %20 ü?.db"
    database = open_database(sqlite_url(path))
    with database.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (a INTEGER)"))
    database.close()
    assert path.is_file()


def test_sqlite_is_durable_and_checks_references(tmp_path):
    database = open_database(sqlite_url(tmp_path / "a.db"))
    with database.read() as connection:
        answers = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    # synchronous 2 = FULL: a commit is on the disk before it is acknowledged.
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    assert answers == expected


def test_an_exception_undoes_the_transaction(database):
    def work(connection):
        connection.execute(users.insert().values(**ROW))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.run(work)
    assert n_users(database) == 0


def test_readers_wait_for_no_writer(database):
    with database.begin() as connection:
        connection.execute(users.insert().values(**ROW))
        assert n_users(database) == 0
    assert n_users(database) == 1


def test_writers_wait_for_each_other(database):
    """A value that is read and written back in one transaction is never lost."""
    database.run(lambda connection: connection.execute(users.insert().values(**ROW)))

    def add_one(connection):
        query = sa.select(users.c.usage_s).with_for_update()
        usage = connection.execute(query).scalar_one()
        connection.execute(users.update().values(usage_s=usage + 1))

    threads = [
        threading.Thread(target=lambda: [database.run(add_one) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(sa.select(users.c.usage_s)).scalar_one() == 40


def test_what_fails_for_the_moment_is_tried_again(database):
    n_tries = 0

    def work(connection):
        nonlocal n_tries
        n_tries += 1
        connection.execute(users.insert().values(**ROW))
        if n_tries < 4:
            raise sa.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked"))
        return "done"

    assert database.run(work) == "done"
    assert n_tries == 4
    assert n_users(database) == 1


def test_what_fails_every_time_is_one_clear_error(database):
    def work(_connection):
        raise sa.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked"))

    with pytest.raises(StorageError, match="refused a transaction 8 times"):
        database.run(work)


def test_a_key_that_is_there_is_not_tried_for_long(database):
    n_tries = 0

    def work(connection):
        nonlocal n_tries
        n_tries += 1
        connection.execute(users.insert().values(**ROW))

    database.run(work)
    with pytest.raises(sa.exc.IntegrityError):
        database.run(work)
    assert n_tries == 1 + 2


def test_a_wrong_statement_is_not_tried_again(database):
    n_tries = 0

    def work(connection):
        nonlocal n_tries
        n_tries += 1
        connection.execute(sa.text("SELECT nonsense FROM nowhere"))

    with pytest.raises(sa.exc.DBAPIError):
        database.run(work)
    assert n_tries == 1


def test_a_connection_that_was_cut_is_made_again(postgres_url, postgres_server):
    """The server was restarted, or somebody ended the session."""
    database = open_database(postgres_url)
    with database.read() as connection:
        number = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    other = open_database(postgres_server.url("postgres"))
    with other.begin() as connection:
        connection.execute(sa.text(f"SELECT pg_terminate_backend({number})"))
    other.close()
    assert database.run(lambda connection: connection.execute(sa.text("SELECT 1")).scalar()) == 1
    database.close()


def test_a_deadlock_is_resolved(postgres_url):
    database = open_database(postgres_url)
    users.create(database.engine)
    with database.begin() as connection:
        for owner in "ab":
            connection.execute(users.insert().values(**{**ROW, "owner": owner}))
    barrier, n_tries = threading.Barrier(2), []

    def swap(first, second):
        def work(connection):
            n_tries.append(first)
            update = users.update().values(usage_s=users.c.usage_s + 1)
            connection.execute(update.where(users.c.owner == first))
            if n_tries.count(first) == 1:
                barrier.wait()
            connection.execute(update.where(users.c.owner == second))

        return lambda: database.run(work)

    threads = [threading.Thread(target=swap(*pair)) for pair in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert connection.execute(sa.select(users.c.usage_s)).scalars().all() == [2.0, 2.0]
    assert len(n_tries) == 3
    database.close()


def test_no_server_is_one_clear_error(tmp_path):
    database = open_database(f"postgresql://lamella@/name?host={tmp_path}")
    database._sleep = lambda _: None
    with pytest.raises(StorageError, match="refused a transaction"):
        database.run(lambda connection: connection.execute(sa.text("SELECT 1")))
