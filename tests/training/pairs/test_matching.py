"""Images and labels find each other by their names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError, MissingPathError
from lamella.training.pairs.matching import match
from lamella.training.pairs.pattern import (
    Found,
    Pattern,
    find_files,
    split_location,
    without_suffix,
)

NAMES = st.lists(
    st.from_regex(r"[a-z]{1,5}[-_ ]?[0-9]{1,3}", fullmatch=True),
    min_size=2,
    max_size=8,
    unique=True,
)


def _files(folder: str, names: list[str], ending: str) -> list[Found]:
    return [Found(f"{folder}/{name}{ending}", (name,)) for name in names]


@given(NAMES, st.randoms(), st.sampled_from([".tif", "_labels.tif", "_seg.nii.gz", "-mask.png"]))
def test_same_names_find_each_other_in_any_order(names, random, ending):
    labels = _files("labels", names, ending)
    random.shuffle(labels)
    found = match(_files("images", names, ".png"), labels)
    assert found.is_perfect
    assert found.partners == {f"images/{n}.png": f"labels/{n}{ending}" for n in names}


@given(st.sets(st.integers(0, 500), min_size=2), st.sampled_from(["labels", "seg_", "x-y "]))
def test_numbers_are_compared_as_numbers(numbers, word):
    images = [Found(f"raw/{n:02d}.tif", (f"{n:02d}",)) for n in sorted(numbers)]
    labels = [Found(f"l/{word}{n:08d}.png", (f"{word}{n:08d}",)) for n in sorted(numbers)]
    found = match(images, labels)
    assert found.is_perfect
    for image, label in found.partners.items():
        assert int(image[4:-4]) == int(label[-12:-4])


@given(NAMES, st.integers(0, 7))
def test_a_missing_file_shifts_nothing(names, gone):
    gone %= len(names)
    labels = [f for i, f in enumerate(_files("labels", names, ".png")) if i != gone]
    found = match(_files("images", names, ".png"), labels)
    if len(names) > 2:
        assert f"images/{names[gone]}.png" in found.alone_images
    assert all(
        image[len("images/") :] == label[len("labels/") :]
        for image, label in found.partners.items()
    )


def test_doubles_are_named_not_chosen():
    images = _files("a", ["cell1", "cell2"], ".png")
    labels = [*_files("b", ["cell1", "cell2"], ".png"), *_files("b", ["cell1"], ".tif")]
    found = match(images, labels)
    assert not found.is_perfect
    assert found.doubles == (("b/cell1.png", "b/cell1.tif"),)
    assert found.partners == {"a/cell2.png": "b/cell2.png"}


def test_wildcards_of_a_pattern():
    pattern = Pattern.parse("sub-*/micr/*_SEM.png")
    assert pattern.captured("sub-rat1/micr/d5_SEM.png") == ("rat1", "d5")
    assert pattern.captured("sub-rat1/d5_SEM.png") is None
    deep = Pattern.parse("a/**/*")
    assert deep.captured("a/b/c/d.tif") == ("b/c", "d")
    assert deep.captured("a/d.ome.tif") == ("", "d")
    assert Pattern.parse("raw/1[5-9].tif").captured("raw/16.tif") == ("6",)
    assert Pattern.parse("raw/[!1]0.tif").captured("raw/10.tif") is None
    assert Pattern.parse("x.h5::volumes/raw").dataset == "volumes/raw"
    with pytest.raises(InputError, match="bracket"):
        Pattern.parse("raw/[1.tif")
    with pytest.raises(InputError, match="empty"):
        Pattern.parse("  ")


def test_suffixes_and_locations():
    assert without_suffix("a.b/c.ome.tif") == "a.b/c"
    assert without_suffix("gt.lzf.h5") == "gt"
    assert without_suffix("v1.2") == "v1.2"
    assert split_location("C:/x.h5::raw") == ("C:/x.h5", "raw")


def _touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_find_files(tmp_path):
    _touch(tmp_path, "images/a.png", "images/deep/b.tif", "images/notes.txt", "images/.hidden.png")
    _touch(tmp_path, "images/c.ome.zarr/0/zarr.json", "images/c.ome.zarr/0/picture.png")
    found = [one.location for one in find_files(tmp_path, "images/**/*")]
    assert found == ["images/a.png", "images/c.ome.zarr", "images/deep/b.tif"]
    assert [one.location for one in find_files(tmp_path, "images")] == found
    assert [one.location for one in find_files(tmp_path, "images/*.png")] == ["images/a.png"]
    assert [one.location for one in find_files(tmp_path, "images/*/")] == ["images/deep"]
    named = find_files(tmp_path, "images/*.zarr::labels/cells")
    assert [one.location for one in named] == ["images/c.ome.zarr::labels/cells"]
    with pytest.raises(MissingPathError, match="no file"):
        find_files(tmp_path, "images/*.mrc")
    with pytest.raises(MissingPathError, match="no folder"):
        find_files(tmp_path, "pictures/*")
    with pytest.raises(MissingPathError, match="nothing"):
        find_files(tmp_path, "images/z.png")
