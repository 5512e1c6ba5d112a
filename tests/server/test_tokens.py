"""Tokens: hashed, compared in constant time, ended at once; secrets only where they belong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, UnauthenticatedError, UnknownIdError
from lamella.jobs.database import open_database
from lamella.server.migrations import migrate
from lamella.server.tokens import SCOPES, TokenStore, scopes_of_role
from lamella.testing.clock import Clock
from lamella.wire.access import TokenSpec


@pytest.fixture
def clock():
    return Clock(1_800_000_000.0)


@pytest.fixture
def store(database, clock):
    return TokenStore(database, b"k" * 32, clock)


def spec(**values):
    return TokenSpec.model_validate({"user": "maria", **values})


def test_a_token_allows_what_its_role_does(store):
    made = store.add(spec(role="viewer"))
    grant = store.verify(made.secret)
    assert grant.user == "maria"
    assert grant.scopes == set(scopes_of_role("viewer"))
    assert not [scope for scope in grant.scopes if scope.endswith(":write")]


def test_roles_grow():
    viewer, annotator = set(scopes_of_role("viewer")), set(scopes_of_role("annotator"))
    assert viewer < annotator < set(SCOPES) == set(scopes_of_role("admin"))
    assert "tokens:manage" not in annotator
    assert "models:write" not in annotator


def test_scopes_narrow_a_role_and_never_widen_it(store):
    made = store.add(spec(role="annotator", scopes=["jobs:read"]))
    assert store.verify(made.secret).scopes == {"jobs:read"}
    with pytest.raises(InputError, match="does not have the scope tokens:manage"):
        store.add(spec(role="annotator", scopes=["tokens:manage"]))
    with pytest.raises(InputError, match="no scope") as caught:
        store.add(spec(scopes=["job:read"]))
    assert "jobs:read" in caught.value.hint


def test_the_secret_is_kept_nowhere(store):
    made = store.add(spec())
    with store.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM tokens").fetchall()
    assert made.secret.split("_", 2)[2] not in str(rows)
    assert made.secret not in str(vars(store))
    assert made.secret not in store.list()[0].model_dump_json()


def test_it_expires(store, clock):
    made = store.add(spec(expires_s=60))
    store.verify(made.secret)
    clock.now += 59
    store.verify(made.secret)
    clock.now += 1
    with pytest.raises(UnauthenticatedError, match="expired"):
        store.verify(made.secret)


def test_revoking_ends_it_at_once_even_when_it_was_just_used(store):
    made = store.add(spec())
    store.verify(made.secret)
    assert store.revoke(made.token.id).is_revoked
    with pytest.raises(UnauthenticatedError, match="revoked"):
        store.verify(made.secret)
    assert store.revoke(made.token.id).is_revoked, "twice changes nothing"
    with pytest.raises(UnknownIdError):
        store.revoke("nothing")


def test_another_process_ends_it_within_two_seconds(store, clock, database_url):
    made = store.add(spec())
    store.verify(made.secret)
    other = TokenStore(store.database, store.key, clock)
    other.revoke(made.token.id)
    clock.now += 2
    with pytest.raises(UnauthenticatedError, match="revoked"):
        store.verify(made.secret)


def test_the_last_use_is_written_about_once_a_minute(store, clock):
    made = store.add(spec())
    assert made.token.last_used is None
    store.verify(made.secret)
    first = store.get(made.token.id).last_used
    clock.now += 30
    store.verify(made.secret)
    assert store.get(made.token.id).last_used == first
    clock.now += 40
    store.verify(made.secret)
    assert store.get(made.token.id).last_used > first


def test_a_token_of_another_server_is_none(store):
    made = TokenStore(store.database, b"x" * 32).add(spec())
    with pytest.raises(UnauthenticatedError, match="not one of this server"):
        store.verify(made.secret)


def test_wrong_ids_and_wrong_secrets_get_the_same_answer(store):
    made = store.add(spec())
    wrong_id = f"lam_{'0' * 12}_{made.secret.rpartition('_')[2]}"
    wrong_secret = made.secret[:-1] + ("A" if made.secret[-1] != "A" else "B")
    messages = set()
    for text in (wrong_id, wrong_secret, "lam_", "", made.secret + "x", made.secret.upper()):
        with pytest.raises(UnauthenticatedError) as caught:
            store.verify(text)
        messages.add(caught.value.message)
    assert len(messages) == 1


@pytest.fixture(scope="module")
def one_store(tmp_path_factory):
    database = open_database(f"sqlite:///{tmp_path_factory.mktemp('tokens') / 'tokens.db'}")
    migrate(database)
    store = TokenStore(database, b"k" * 32)
    yield store, store.add(spec()).secret
    database.close()


@given(data=st.data())
def test_nothing_but_the_secret_itself_is_accepted(one_store, data):
    store, secret = one_store
    near = st.builds(
        lambda at, char: secret[:at] + char + secret[at + 1 :],
        st.integers(0, len(secret) - 1),
        st.characters(),
    )
    text = data.draw(st.one_of(st.text(max_size=80), near))
    if text == secret:
        assert store.verify(text).user == "maria"
    else:
        with pytest.raises(UnauthenticatedError):
            store.verify(text)
