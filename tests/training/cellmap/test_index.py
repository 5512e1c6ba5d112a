"""What is found in folders of CellMap data: classes known, absent, unknown; geometry; findings."""

import json
import shutil

import numpy as np
import pytest

from lamella.cli.app import main
from lamella.core.errors import InputError, LamellaError, MissingPathError
from lamella.training.cellmap.index import index_cellmap
from lamella.training.cellmap.tree import Tree


def codes(index):
    return [finding.code for finding in index.findings]


def test_the_mini_data_set(data_dir):
    index = index_cellmap(str(data_dir / "em" / "cellmap_mini"))
    (known,) = index.data_sets
    assert index.findings == ()
    assert [crop.name for crop in known.crops] == ["crop101", "crop102", "crop103"]
    first, second, third = known.crops
    assert (first.status("mito"), first.status("pm"), first.status("perox")) == (
        "present", "present", "unknown",
    )  # fmt: skip
    assert (second.status("mito"), second.status("pm")) == ("present", "unknown")
    assert (third.status("mito"), third.status("perox")) == ("present", "absent")
    assert [level.grid.spacing[1] for level in known.raw] == [4.6, 9.2, 18.4]
    # Raw chunks that no crop touches were never fetched; those of the crops all were.
    assert all(sum(crop.raw_missing) == 0 for crop in known.crops)
    tree = Tree.open(str(data_dir / "em" / "cellmap_mini"))
    assert tree.missing_chunks(known.raw[0])


def test_levels_are_chosen_by_size_not_number(data_dir):
    index = index_cellmap(str(data_dir / "em" / "cellmap_mini"))
    document = index.to_dict(spacing=(50.0, 4.6, 4.6))
    data_set = document["data_sets"][0]
    assert data_set["raw_choice"]["path"].endswith("/s0")
    assert data_set["crops"][0]["classes"]["mito"]["choice"]["path"].endswith("/s1")
    assert document["unit"] == "nm"


def test_present_absent_unknown_and_the_merged_array(root):
    index = index_cellmap(str(root))
    crop = index.data_sets[0].crops[0]
    assert {c.name: c.status for c in crop.classes} == {"mito": "present", "er": "absent"}
    assert crop.status("nuc") == "unknown"
    np.testing.assert_allclose(crop.low, (28.0, 60.0, 60.0))
    np.testing.assert_allclose(crop.high, (92.0, 124.0, 124.0))


@pytest.mark.parametrize("part", ["", "jrc_test", "jrc_test/jrc_test.zarr"])
def test_any_folder_on_the_way_will_do(root, part):
    index = index_cellmap(str(root / part))
    assert [known.name for known in index.data_sets] == ["jrc_test"]
    assert len(index.data_sets[0].crops) == 1


def test_chunks_that_were_not_fetched_are_counted(root):
    raw = root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8/s0"
    assert index_cellmap(str(root)).data_sets[0].crops[0].raw_missing == (0, 0)
    (raw / "1.1.1").unlink()
    crop = index_cellmap(str(root)).data_sets[0].crops[0]
    assert crop.raw_missing == (1, 0)
    assert crop.raw_chunks[0] == 2


def test_a_volume_of_terabytes_is_looked_at_where_its_crops_are(root):
    """Billions of chunks that nobody fetched are not listed."""
    for name in ("s0", "s1"):
        array = root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8" / name / ".zarray"
        document = json.loads(array.read_text())
        array.write_text(json.dumps({**document, "shape": [40_000, 50_000, 60_000]}))
    crop = index_cellmap(str(root)).data_sets[0].crops[0]
    assert crop.raw_missing == (0, 0)
    assert crop.raw_chunks[0] == 2


def test_a_file_system_in_memory(root):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(root / "jrc_test"), "/index-test/jrc_test", recursive=True)
    try:
        here, there = index_cellmap(str(root)), index_cellmap("memory://index-test")
        assert there.data_sets[0].crops == here.data_sets[0].crops
    finally:
        memory.rm("/index-test", recursive=True)


# --- What may be wrong ---------------------------------------------------------------------------


def test_a_crop_outside_the_raw_data_is_found(root, write_pyramid):
    crop = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop8"
    write_pyramid(
        crop / "mito", [np.ones((4, 4, 4), np.uint8)], spacing=(8.0, 8.0, 8.0), origin=(250.0,) * 3
    )
    index = index_cellmap(str(root))
    assert codes(index) == ["crop_outside_raw"]
    assert "282" in index.findings[0].message or "278" in index.findings[0].message


def test_wrong_units_and_unknown_classes_are_found(root, write_pyramid):
    crops = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth"
    ones = np.ones((4, 4, 4), np.uint8)
    write_pyramid(crops / "crop7" / "nuc", [ones], spacing=(4.0,) * 3, unit="parsec")
    write_pyramid(crops / "crop7" / "mitos", [ones], spacing=(4.0,) * 3, origin=(30, 62, 62))
    assert sorted(codes(index_cellmap(str(root)))) == ["class_unreadable", "unknown_class"]


def test_other_units_of_length_are_converted(root, write_pyramid):
    crop = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop9"
    ones = np.ones((4, 4, 4), np.uint8)
    write_pyramid(crop / "mito", [ones], spacing=(0.008,) * 3, origin=(0.1,) * 3, unit="micrometer")
    index = index_cellmap(str(root))
    known = next(c for c in index.data_sets[0].crops if c.name == "crop9")
    np.testing.assert_allclose(known.low, (96.0,) * 3)


def test_a_corrupt_chunk_is_named(root):
    array = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop7/mito/s0"
    (array / "1.1.1").write_bytes(b"not a chunk")
    index = index_cellmap(str(root))
    assert codes(index) == ["class_unreadable"]
    assert "1.1.1" in index.findings[0].message


def test_no_raw_data_is_a_finding(root):
    shutil.rmtree(root / "jrc_test/jrc_test.zarr/recon-1/em")
    index = index_cellmap(str(root))
    assert codes(index) == ["no_raw"]
    assert index.data_sets[0].raw == ()


def test_folders_without_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="no CellMap data"):
        index_cellmap(str(tmp_path))
    with pytest.raises(MissingPathError):
        index_cellmap(str(tmp_path / "nothing"))
    with pytest.raises(LamellaError):
        index_cellmap("nosuchprotocol://bucket")


# --- The command ---------------------------------------------------------------------------------


def test_the_command_answers_in_json_and_writes_a_file(root, tmp_path, capsys):
    out = tmp_path / "index.json"
    words = ["cellmap", "index", str(root), "-o", str(out), "--voxel-size", "8,8,8"]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads(out.read_text())
    crop = answer["data_sets"][0]["crops"][0]
    assert (crop["present"], crop["absent"], crop["unknown"]) == (["mito"], ["er"], [])
    assert crop["classes"]["mito"]["choice"]["ratio"] == [2.0, 2.0, 2.0]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_command_for_people(root, capsys):
    assert main(["cellmap", "index", str(root), "--voxel-size", "8nm"]) == 0
    text = capsys.readouterr().out
    assert "crop7" in text
    assert "annotated, absent" in text
