"""A database is one server's; who comes with another data folder is sent away."""

import pytest

from lamella.core.errors import ConflictError
from lamella.server.ownership import take_database
from lamella.server.secret import Secret
from lamella.server.services import open_services
from lamella.server.settings import Settings


def test_the_first_is_the_owner_and_stays_it_also_elsewhere(database, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    secret = Secret.of_folder(tmp_path / "a")
    for _ in range(2):
        take_database(database, secret, tmp_path / "a")
    # The folder was moved, with all that is in it.
    take_database(database, secret, tmp_path / "moved")
    with pytest.raises(ConflictError, match="belongs to another server") as caught:
        take_database(database, Secret.of_folder(tmp_path / "b"), tmp_path / "b")
    assert str(tmp_path / "a") in str(caught.value)
    assert "database of its own" in caught.value.hint


def test_two_servers_at_one_postgresql(postgres_url, tmp_path):
    def settings(name):
        return Settings(data_dir=tmp_path / name, database_url=postgres_url)

    first = open_services(settings("a"))
    with pytest.raises(ConflictError, match="belongs to another server"):
        open_services(settings("b"))
    first.database.close()
    open_services(settings("a")).database.close()
