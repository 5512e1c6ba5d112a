"""Predictions on other grids, scored and packed: what is sent is what is scored."""

import json
import zipfile

import cc3d
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from lamella.cli.app import main
from lamella.core.errors import GeometryError, InputError, OutputExistsError, UnreadableFileError
from lamella.training.cellmap.aligned import align
from lamella.training.cellmap.grid import Grid
from lamella.training.cellmap.index import index_cellmap
from lamella.training.cellmap.manifest import manifest_of_index, parse_manifest, read_manifest
from lamella.training.cellmap.pack import pack_submission
from lamella.training.cellmap.score import score_cellmap

# --- Labels on another grid ----------------------------------------------------------------------

shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.sampled_from([2.0, 4.0, 5.0])] * 3)
origins = st.tuples(*[st.integers(-12, 12).map(float)] * 3)
grids = st.builds(Grid, shapes, spacings, origins)


def positions(source, target):
    axes = [
        (o + np.arange(n) * s - so) / ss
        for o, n, s, so, ss in zip(
            target.origin, target.shape, target.spacing, source.origin, source.spacing, strict=True
        )
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@given(grids, grids, st.integers(0, 10**6))
def test_ids_are_those_of_the_nearest_voxel(source, target, seed):
    labels = np.random.default_rng(seed).integers(1, 2**40, source.shape).astype(np.uint64)
    found = align(labels, source, target, is_instance=True)
    assert (found.shape, found.dtype) == (target.shape, labels.dtype)
    index = np.floor(positions(source, target) + 0.5 + 1e-6).astype(int)
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, source.shape, strict=True)], axis=0)
    expected = np.zeros(target.shape, np.uint64)
    expected[inside] = labels[tuple(i[inside] for i in index)]
    np.testing.assert_array_equal(found, expected)


@given(grids, grids, st.integers(0, 10**6))
def test_presence_is_linear_and_cut_at_one_half(source, target, seed):
    labels = np.random.default_rng(seed).integers(0, 2, source.shape).astype(np.uint8)
    found = align(labels, source, target, is_instance=False)
    value = map_coordinates(
        np.pad(labels, 1).astype(float), positions(source, target) + 1, order=1, cval=0.0
    )
    is_clear = np.abs(value - 0.5) > 1e-4
    np.testing.assert_array_equal(found[is_clear], (value > 0.5)[is_clear])


@given(grids, st.integers(0, 10**6))
def test_the_same_grid_changes_nothing(grid, seed):
    labels = np.random.default_rng(seed).integers(0, 9, grid.shape).astype(np.uint32)
    np.testing.assert_array_equal(align(labels, grid, grid, is_instance=True), labels)
    np.testing.assert_array_equal(align(labels, grid, grid, is_instance=False), labels > 0)


def test_grids_too_far_apart_are_refused():
    near, far = (Grid((2, 2, 2), (s,) * 3, (0.0,) * 3) for s in (2.0, 40.0))
    with pytest.raises(GeometryError, match="4096"):
        align(np.zeros((2, 2, 2)), near, far, is_instance=True)


# --- Scores --------------------------------------------------------------------------------------


def write_prediction(folder, labels, grid):
    made = zarr.create_array(
        str(folder), shape=labels.shape, dtype=labels.dtype, chunks=(8, 8, 8), zarr_format=2
    )
    made[...] = labels
    made.attrs["voxel_size"] = list(grid.spacing)
    made.attrs["translation"] = list(grid.origin)


@pytest.fixture
def reference(root):
    """Labels of the crop by class, with their grid."""
    wanted = {label.name: label.grid for label in manifest_of_index(index_cellmap(str(root)))}
    base = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop7"
    return {
        name: (zarr.open_array(str(base / name / "s0"), mode="r")[...], grid)
        for name, grid in wanted.items()
    }


@pytest.fixture
def perfect(tmp_path, reference):
    folder = tmp_path / "predictions"
    for name, (labels, grid) in reference.items():
        write_prediction(folder / "jrc_test.zarr" / "crop7" / name, labels, grid)
    return folder


def test_the_reference_itself_scores_one(root, perfect):
    score = score_cellmap(str(perfect), str(root))
    assert score.official.overall == score.strict.overall == 1.0
    assert {c.label.name: c.is_missing for c in score.crops} == {"mito": False, "er": False}
    assert next(c for c in score.crops if c.label.name == "mito").voi == (0.0, 0.0)


def test_a_submission_lies_beside_the_data_set_and_on_coarser_voxels(root, tmp_path, reference):
    labels, grid = reference["mito"]
    coarse = Grid(
        tuple(n // 2 for n in grid.shape),
        tuple(2 * s for s in grid.spacing),
        tuple(o + s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)),
    )
    write_prediction(tmp_path / "sub" / "crop7" / "mito", labels[::2, ::2, ::2], coarse)
    score = score_cellmap(str(tmp_path / "sub"), str(root), classes=["mito"])
    assert score.official.instance == 1.0


def test_what_was_not_predicted_scores_nothing(root, tmp_path, reference):
    labels, grid = reference["er"]
    write_prediction(tmp_path / "p" / "crop7" / "er", labels, grid)
    score = score_cellmap(str(tmp_path / "p"), str(root))
    mito = score.official.classes["mito"]
    assert (mito.score, mito.false_negatives) == (0.0, 1)
    # Annotated as absent, and nothing predicted: right.
    assert score.official.classes["er"].score == 1.0


def test_a_mask_keeps_what_nobody_could_annotate_out(root, tmp_path, reference, write_pyramid):
    labels, grid = reference["er"]
    wrong = np.zeros_like(labels)
    wrong[:8] = 1
    write_prediction(tmp_path / "p" / "crop7" / "er", wrong, grid)
    crop = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop7"
    mask = np.ones(labels.shape, np.uint8)
    assert score_cellmap(str(tmp_path / "p"), str(root), classes=["er"]).official.semantic == 0.0
    mask[:8] = 0
    write_pyramid(crop / "er_mask", [mask], spacing=grid.spacing, origin=grid.origin)
    assert index_cellmap(str(root)).findings == ()
    assert score_cellmap(str(tmp_path / "p"), str(root), classes=["er"]).official.semantic == 1.0


def test_on_the_mini_data_set_shifted_labels_lose(data_dir, tmp_path):
    root = str(data_dir / "em" / "cellmap_mini")
    index = index_cellmap(root)
    label = next(m for m in manifest_of_index(index) if (m.crop, m.name) == ("crop103", "mito"))
    base = data_dir / "em/cellmap_mini/jrc_vnc-a/jrc_vnc-a.zarr/recon-1/labels/groundtruth"
    labels = zarr.open_array(str(base / "crop103/mito/s0"), mode="r")[...]
    scores = []
    for shift in (0, 4, 16):
        folder = tmp_path / str(shift)
        write_prediction(folder / "crop103" / "mito", np.roll(labels, shift, axis=2), label.grid)
        found = score_cellmap(str(folder), root, classes=["mito"], crops=["crop103"])
        scores.append(found.official.instance)
    assert cc3d.connected_components(labels).max() > 0
    assert scores[0] > scores[1] > scores[2]
    assert scores[0] == 1.0


# --- Packing -------------------------------------------------------------------------------------


def test_what_is_packed_is_what_is_scored(root, perfect, tmp_path):
    wanted = manifest_of_index(index_cellmap(str(root)))
    made = pack_submission(str(perfect), wanted, tmp_path / "submission.zip")
    assert (made.n_labels, made.missing, made.empty) == (2, (), ("crop7/er",))
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path / "unpacked")
    group = tmp_path / "unpacked" / "submission.zarr"
    array = zarr.open_array(str(group / "crop7" / "mito"), mode="r")
    assert array.metadata.zarr_format == 2
    assert array.attrs["voxel_size"] == [4.0, 4.0, 4.0]
    assert array.attrs["translation"] == [30.0, 62.0, 62.0]
    assert score_cellmap(str(group), str(root)).official.overall == 1.0
    again = pack_submission(str(perfect), wanted, tmp_path / "again.zip")
    assert again.path.read_bytes() == made.path.read_bytes()


def test_ids_beyond_eight_and_sixteen_bits_are_kept(tmp_path):
    shape = (40, 60, 140)
    ids = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    grid = Grid(shape, (4.0, 4.0, 4.0), (10.0, 20.0, 30.0))
    write_prediction(tmp_path / "p" / "crop1" / "mito", ids, grid)
    row = "1,x,mito,[4;4;4],[10;20;30],[40;60;140]"
    wanted = parse_manifest(["crop_name,dataset,class_label,voxel_size,translation,shape", row])
    made = pack_submission(str(tmp_path / "p"), wanted, tmp_path / "s.zip")
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path / "u")
    packed = zarr.open_array(str(tmp_path / "u/submission.zarr/crop1/mito"), mode="r")
    assert packed.dtype == np.uint32
    np.testing.assert_array_equal(packed[...], ids)


def test_missing_and_misplaced_predictions_are_told_at_once(root, perfect, tmp_path, reference):
    wanted = manifest_of_index(index_cellmap(str(root)))
    more = [*wanted, wanted[0].__class__("jrc_test", "crop99", "mito", wanted[0].grid)]
    target = tmp_path / "s.zip"
    with pytest.raises(InputError, match="1 of 3") as caught:
        pack_submission(str(perfect), more, target)
    assert caught.value.details["missing"] == ["crop99/mito"]
    assert not target.exists()
    assert pack_submission(str(perfect), more, target, allow_missing=True).missing
    with pytest.raises(OutputExistsError):
        pack_submission(str(perfect), wanted, target)
    labels, grid = reference["er"]
    beside = Grid(grid.shape, grid.spacing, (9e5, 9e5, 9e5))
    write_prediction(tmp_path / "q" / "crop7" / "er", labels, beside)
    with pytest.raises(InputError, match="lies beside"):
        pack_submission(str(tmp_path / "q"), wanted, tmp_path / "t.zip", allow_missing=True)
    assert sorted(p.suffix for p in tmp_path.glob("*.zip*")) == [".zip"]


def test_an_array_that_does_not_say_where_it_lies(root, tmp_path):
    zarr.create_array(
        str(tmp_path / "p" / "crop7" / "er"), shape=(4, 4, 4), dtype="u1", zarr_format=2
    )
    with pytest.raises(GeometryError, match="does not say where"):
        score_cellmap(str(tmp_path / "p"), str(root))


# --- Manifests -----------------------------------------------------------------------------------


def test_manifests_that_make_no_sense(tmp_path):
    head = "crop_name,dataset,class_label,voxel_size,translation,shape"
    with pytest.raises(UnreadableFileError, match="shape"):
        parse_manifest(["crop_name,dataset"])
    with pytest.raises(InputError, match="line 2"):
        parse_manifest([head, "1,x,mito,[4;4],[0;0;0],[1;1;1]"])
    path = tmp_path / "m.csv"
    path.write_text(f"{head}\n1,x,mito,[4;4;0],[0;0;0],[1;1;1]\n")
    with pytest.raises(InputError, match=r"m\.csv"):
        read_manifest(path)


# --- The commands --------------------------------------------------------------------------------


def test_score_and_pack_at_the_command_line(root, perfect, tmp_path, capsys):
    assert main(["cellmap", "score", str(perfect), str(root), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["official"]["overall"] == 1.0
    assert main(["cellmap", "score", str(perfect), str(root)]) == 0
    assert "official" in capsys.readouterr().out
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "7,jrc_test,mito,[4.0;4.0;4.0],[30.0;62.0;62.0],[16;16;16]\n"
    )
    words = ["cellmap", "pack", str(perfect), str(tmp_path / "s.zip"), "--manifest", str(manifest)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_labels"] == 1
    assert main(["cellmap", "score", str(tmp_path), str(root)]) == 2
    assert "no prediction" in capsys.readouterr().err
    assert main(["cellmap", "score", str(perfect), str(root), "--class", "mitoo"]) == 2
    assert "mito" in capsys.readouterr().err
