"""Problems: every code that a server answers with is explained where its type points to."""

from pathlib import Path

from lamella.core import errors
from lamella.server.problems import _CODE_BY_STATUS, _STATUS_BY_CODE, status_of

PAGE = Path(__file__).parents[2] / "docs/reference/problems.md"


def test_every_code_is_on_its_page():
    page = PAGE.read_text(encoding="utf-8")
    for code in {*_STATUS_BY_CODE, *_CODE_BY_STATUS.values(), "internal_error"}:
        assert f'<a id="{code}"></a>`{code}`' in page, code


def test_every_error_of_ours_that_is_the_clients_has_a_status():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, errors.LamellaError)]
    assert len(ours) > 20
    for kind in ours:
        if issubclass(kind, errors.InputError):
            assert status_of(kind.code) in (400, 422), kind.code
    for code, status in _STATUS_BY_CODE.items():
        assert 400 <= status < 600, code
