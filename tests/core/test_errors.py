"""Errors: stable codes, and the same class after a trip through a document or a process."""

import pickle

import pytest

from lamella.core import errors
from lamella.core.errors import LamellaError
from lamella.wire.problem import Problem

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LamellaError)
]


def test_codes_are_unique():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_a_document_and_a_pickle(kind):
    error = kind("what came", hint="what to do", details={"n": 1})
    for again in (Problem.from_error(error).to_error(), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert (again.message, again.hint, again.details) == ("what came", "what to do", {"n": 1})
        assert str(again) == "what came"


def test_a_foreign_exception_is_a_defect_not_a_bad_input():
    problem = Problem.from_error(KeyError("x"))
    assert problem.code == "internal_error"
    assert "report" in (problem.hint or "")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.GeometryError, ValueError),
        (errors.MissingPathError, FileNotFoundError),
        (errors.OutputExistsError, FileExistsError),
        (errors.BoxOutOfBoundsError, IndexError),
        (errors.UnknownModelError, LookupError),
        (errors.MissingDependencyError, ImportError),
        (errors.StorageError, OSError),
        (errors.NarrowingError, OverflowError),
    ],
)
def test_leaves_are_also_the_builtin_people_catch(kind, builtin):
    assert issubclass(kind, builtin)
