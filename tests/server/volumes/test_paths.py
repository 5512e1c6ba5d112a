"""Paths of the server: below the allowed folders, whatever they are written like."""

import pytest

from lamella.core.errors import ForbiddenError, InputError, MissingPathError
from lamella.server.volumes.paths import ServerRoots


@pytest.fixture
def roots(tmp_path):
    (tmp_path / "open" / "inner").mkdir(parents=True)
    (tmp_path / "open" / "a.mrc").write_bytes(b"1")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "b.mrc").write_bytes(b"2")
    (tmp_path / "open-not").mkdir()
    (tmp_path / "open-not" / "c.mrc").write_bytes(b"3")
    return ServerRoots((str(tmp_path / "open"), "s3://bucket/scans"))


def test_what_lies_below_a_root_is_found(roots, tmp_path):
    assert roots.resolve(f"{tmp_path}/open/a.mrc") == tmp_path / "open" / "a.mrc"
    assert roots.resolve(f"{tmp_path}/open/inner/../a.mrc") == tmp_path / "open" / "a.mrc"
    assert roots.resolve(f"{tmp_path}/open") == tmp_path / "open"


@pytest.mark.parametrize(
    "text",
    ["closed/b.mrc", "open/../closed/b.mrc", "open-not/c.mrc", "", "nowhere", "open/../nowhere"],
)
def test_what_lies_elsewhere_is_refused_and_nothing_is_told_of_it(roots, tmp_path, text):
    with pytest.raises(ForbiddenError) as refused:
        roots.resolve(f"{tmp_path}/{text}")
    assert refused.value.message == "this path is not below a folder that the server reads"
    assert "--allow-root" in refused.value.hint


def test_links_that_lead_out_are_refused(roots, tmp_path):
    (tmp_path / "open" / "link.mrc").symlink_to(tmp_path / "closed" / "b.mrc")
    with pytest.raises(ForbiddenError):
        roots.resolve(f"{tmp_path}/open/link.mrc")
    (tmp_path / "open" / "inner" / "deep").symlink_to(tmp_path / "closed")
    for text in ("open/inner", "open", "open/inner/deep/b.mrc"):
        with pytest.raises(ForbiddenError):
            roots.resolve(f"{tmp_path}/{text}")


def test_links_within_are_followed(roots, tmp_path):
    (tmp_path / "open" / "inner" / "same.mrc").symlink_to(tmp_path / "open" / "a.mrc")
    assert roots.resolve(f"{tmp_path}/open/inner/same.mrc") == tmp_path / "open" / "a.mrc"
    assert roots.resolve(f"{tmp_path}/open/inner") == tmp_path / "open" / "inner"


def test_what_is_missing_below_a_root_is_missing(roots, tmp_path):
    with pytest.raises(MissingPathError):
        roots.resolve(f"{tmp_path}/open/none.mrc")


@pytest.mark.parametrize("text", ["a.mrc", "", "~/a.mrc", "file:///etc/passwd", "/a\0b"])
def test_what_is_no_absolute_path(roots, text):
    with pytest.raises(InputError, match="absolute path"):
        roots.resolve(text)


def test_without_roots_nothing_is_read(tmp_path):
    with pytest.raises(ForbiddenError, match="no files of its own disks"):
        ServerRoots(()).resolve(str(tmp_path))


def test_addresses_below_an_allowed_prefix(roots):
    assert roots.check_url("s3://bucket/scans/a.mrc") == "s3://bucket/scans/a.mrc"
    for url in ("s3://bucket/scans-2/a", "s3://bucket/a", "s3://other/scans/a"):
        with pytest.raises(ForbiddenError):
            roots.check_url(url)
    for url in ("s3://bucket/scans/../a", "s3://", "s3:///x", "s3://bucket", "s3://bucket/a?b=c"):
        with pytest.raises(InputError):
            roots.check_url(url)
