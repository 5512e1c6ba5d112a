"""Waits, limits and errors: a table."""

import pytest

from lamella.client.flow import Failure, Pause, Request, Response, Send, Tell
from lamella.client.patience import (
    STATUSES,
    Patience,
    Trouble,
    Waiting,
    ask,
    error_of,
    retry_after_s,
)
from lamella.core import errors


def waits(answers, patience):
    """Pauses of a request that is answered so, again and again."""
    flow = ask(Request("GET", "x"), Trouble(patience))
    found = []
    instruction = next(flow)
    for answer in answers:
        assert isinstance(instruction, Send)
        told = flow.send(answer)
        assert isinstance(told, Tell)
        assert isinstance(told.event, Waiting)
        found.append(flow.send(None).seconds)
        instruction = flow.send(None)
    flow.close()
    return found


def test_waits_grow_to_a_bound_with_full_jitter():
    lost = [Failure("broken", "cut", 0.0)] * 8
    longest = waits(lost, Patience(chance=lambda: 1.0))
    assert longest == [0.5, 1, 2, 4, 8, 15, 15, 15]
    assert waits(lost, Patience(chance=lambda: 0.0)) == [0.0] * 8


@pytest.mark.parametrize("status", sorted(STATUSES))
def test_what_is_tried_again(status):
    assert len(waits([Response(status, {}, b"", 0.0)], Patience())) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InputError),
        (401, errors.UnauthenticatedError),
        (403, errors.ForbiddenError),
        (404, errors.MissingPathError),
        (409, errors.ConflictError),
        (410, errors.GoneError),
        (413, errors.QuotaError),
        (418, errors.InputError),
        (422, errors.InputError),
        (501, errors.RunError),
        (507, errors.QuotaError),
        (599, errors.RunError),
    ],
)
def test_what_is_an_error_at_once(status, kind):
    with pytest.raises(kind, match=str(status)):
        waits([Response(status, {"content-type": "text/html"}, b"<h1>no</h1>", 0.0)], Patience())


def test_defects_are_tried_a_few_times():
    answer = Response(500, {}, b"", 0.0)
    with pytest.raises(errors.RunError, match="500"):
        waits([answer] * 5, Patience())
    assert len(waits([answer] * 4, Patience())) == 4


def test_the_servers_problem_is_the_error():
    content = b'{"code": "invalid_geometry", "detail": "spacing is 0", "hint": "--spacing"}'
    answer = Response(422, {"content-type": "application/problem+json"}, content, 0.0)
    error = error_of(answer)
    assert isinstance(error, errors.GeometryError)
    assert (error.message, error.hint) == ("spacing is 0", "--spacing")
    for broken in (b"", b"[]", b"{", b'{"code": 3}'):
        assert error_of(Response(422, answer.headers, broken, 0.0)).code == "invalid_input"


def test_retry_after():
    assert retry_after_s(Response(429, {"retry-after": "3.5"}, b"", 0.0)) == 3.5
    date = {"date": "Wed, 21 Oct 2026 07:28:00 GMT", "retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}
    assert retry_after_s(Response(503, date, b"", 0.0)) == 30.0
    for text in ("", "soon", "-5"):
        assert retry_after_s(Response(503, {"retry-after": text}, b"", 0.0)) in (None, 0.0)
    asked = waits([Response(429, {"retry-after": "9"}, b"", 0.0)], Patience(chance=lambda: 0.0))
    assert asked == [9.0]
    with pytest.raises(errors.TooManyRequestsError):
        waits([Response(429, {"retry-after": "9000"}, b"", 0.0)], Patience())


def test_patience_counts_from_the_first_failure_in_a_row():
    patience = Patience(total_s=60, first_s=5)
    trouble = Trouble(patience)
    trouble.wait(Failure("broken", "cut", 0.0))
    with pytest.raises(errors.ServerConnectionError) as caught:
        trouble.wait(Failure("broken", "cut", 5.0))
    assert "tried" not in caught.value.message
    trouble.over()
    trouble.wait(Failure("broken", "cut", 6.0))
    trouble.wait(Failure("broken", "cut", 65.0))
    with pytest.raises(errors.ServerConnectionError, match="tried again for 60 s"):
        trouble.wait(Failure("broken", "cut", 66.0))


def test_another_server_is_an_error_at_once():
    with pytest.raises(errors.ServerConnectionError, match="stranger"):
        waits([Failure("certificate", "a stranger", 0.0)], Patience())


def test_a_pause_is_as_told():
    flow = ask(Request("GET", "x"), Trouble(Patience()))
    next(flow)
    told = flow.send(Failure("timeout", "slow", 0.0))
    assert flow.send(None) == Pause(told.event.seconds)
