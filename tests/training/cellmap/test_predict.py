"""Predictions of crops: in their place, whole whatever the tiles, gone on with after a stop."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from lamella.cli.app import main
from lamella.core.errors import (
    DeviceMemoryError,
    InputError,
    ModelError,
    OutputExistsError,
    RunCancelledError,
    UnreadableFileError,
)
from lamella.core.progress import SilentSink
from lamella.evaluation.challenge import score_semantic_of_crop
from lamella.models.folder import ModelFolder
from lamella.training.cellmap.machine import NetworkOptions, OpenedNetwork
from lamella.training.cellmap.manifest import read_manifest
from lamella.training.cellmap.objects import ObjectOptions
from lamella.training.cellmap.predict import PredictOptions, predict_cellmap
from lamella.training.cellmap.predictions import find_prediction
from lamella.training.cellmap.score import score_cellmap
from lamella.training.cellmap.tree import Tree
from lamella.volume.spacing import Size
from lamella.wire.card import (
    ClassDoc,
    DecoderDoc,
    ModelCard,
    NetworkDoc,
    NormalisationDoc,
    TrainingDoc,
)
from lamella.wire.request import SpacingDoc


class Bright:
    """A network that sees class 1 where raw is bright, class 2 where it is dark."""

    name, device, precision = "bright", "cpu", "fp32"
    n_outputs = 2
    calls = 0

    def __init__(self, batch_shape, *, channels=None):
        self.batch_shape = batch_shape
        self._channels = channels or (lambda v: np.stack([v * 8, -v * 8], axis=1))

    def __call__(self, batch):
        type(self).calls += 1
        return self._channels(batch[:, 0]).astype(np.float32)


def card(*, nm=(8.0, 8.0, 8.0), tile=(16, 16, 16), names=("mito", "er"), **words):
    values = {
        "id": "bright",
        "title": "bright",
        "description": "",
        "task": "semantic",
        "axes": "zyx",
        "classes": (
            ClassDoc(value=0, name="background"),
            *(ClassDoc(value=i, name=n) for i, n in enumerate(names, 1)),
        ),
        "spacing": None if nm is None else SpacingDoc(values=nm, unit="nm"),
        "normalisation": NormalisationDoc(kind="fixed", mean=130.0, std=70.0),
        "network": NetworkDoc(id="compact_unet3d"),
        "n_outputs": len(names),
        "decoder": DecoderDoc(kind="threshold"),
        "tile": tile,
        "divisor": (2, 2, 2),
        "licence": "MIT",
        "training": TrainingDoc(data="", data_licence="", recipe=""),
    }
    return ModelCard(**(values | words))


@pytest.fixture
def bright(monkeypatch):
    """Networks are the one above; gives a function that makes models of it."""
    made = {}

    def open_it(self):
        settings, known = self.settings, self._model.card
        shape = (1, 1, *settings.tile[3 - len(known.axes) :])
        runtime = Bright(shape, channels=made.get(known.id))
        runtime.n_outputs = known.n_outputs
        return runtime

    monkeypatch.setattr(OpenedNetwork, "_open", open_it)

    def model(channels=None, **words):
        known = card(**words)
        made[known.id] = channels
        return ModelFolder(Path("bright"), known, "a" * 64)

    return model


@pytest.fixture
def world(tmp_path, write_pyramid):
    """Two bright cuboids that touch along a corner of voxels, labelled twice as fine."""
    root = tmp_path / "data"
    base = root / "jrc_b" / "jrc_b.zarr" / "recon-1"
    raw = np.full((48, 48, 64), 60, np.uint8)
    raw[16:28, 14:30, 20:30] = 200
    raw[18:26, 34:40, 20:44] = 200
    write_pyramid(base / "em" / "fibsem-uint8", [raw, raw[::2, ::2, ::2]], spacing=(8.0,) * 3)
    mito = np.zeros((48, 56, 64), np.uint32)
    # Crop from voxel (10, 12, 16) of the raw, 24 x 28 x 32 of its voxels.
    part = raw[10:34, 12:40, 16:48] == 200
    mito[...] = np.repeat(np.repeat(np.repeat(part, 2, 0), 2, 1), 2, 2)
    mito[:, 40:, :] *= 2
    origin = tuple(8.0 * i - 2.0 for i in (10, 12, 16))
    crop = base / "labels" / "groundtruth" / "crop5"
    write_pyramid(crop / "mito", [mito], spacing=(4.0,) * 3, origin=origin, chunks=32)
    write_pyramid(crop / "er", [mito * 0], spacing=(4.0,) * 3, origin=origin, chunks=32)
    return root


def read(out, *names):
    path = out.joinpath(*names)
    return zarr.open_array(str(path), mode="r")[...]


def run(model, root, out, **words):
    return predict_cellmap(model, str(root), out, options=PredictOptions(**words))


MITO = ("jrc_b.zarr", "crop5", "mito")
TRUTH = ("jrc_b", "jrc_b.zarr", "recon-1", "labels", "groundtruth", "crop5", "mito", "s0")


# --- In their place ------------------------------------------------------------------------------


def test_a_prediction_lies_on_the_labels_voxels(bright, world, tmp_path):
    made = run(bright(), world, tmp_path / "out.zarr")
    assert [(one.label.name, one.was_there) for one in made.labels] == [
        ("mito", False),
        ("er", False),
    ]
    found, truth = read(tmp_path / "out.zarr", *MITO), read(world, *TRUTH)
    # Voxels of 8 nm on voxels of 4: linear interpolation rounds corners, nothing more.
    counts = score_semantic_of_crop(found, truth)
    assert (
        counts.true_positives
        / (counts.true_positives + counts.false_positives + counts.false_negatives)
        > 0.95
    )
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        np.testing.assert_array_equal((found > 0).any(others), (truth > 0).any(others))
    attributes = json.loads((tmp_path / "out.zarr" / Path(*MITO) / ".zattrs").read_text())
    assert attributes["voxel_size"] == [4.0, 4.0, 4.0]
    assert attributes["translation"] == [78.0, 94.0, 126.0]


@pytest.mark.parametrize("nm", [(8.0,) * 3, (4.0,) * 3, (16.0,) * 3, (8.0, 6.0, 10.0), None])
def test_whatever_voxels_the_model_wants(bright, world, tmp_path, nm):
    run(bright(nm=nm), world, tmp_path / "out.zarr")
    found, truth = read(tmp_path / "out.zarr", *MITO) > 0, read(world, *TRUTH) > 0
    at_found, at_truth = (np.argwhere(mask).mean(0) for mask in (found, truth))
    np.testing.assert_allclose(at_found, at_truth, atol=0.75)
    overlap = (found & truth).sum() / (found | truth).sum()
    assert overlap > (0.6 if nm == (16.0,) * 3 else 0.85)


@pytest.mark.parametrize("tile", [(16, 16, 16), (8, 24, 12), (64, 64, 64)])
def test_tiles_leave_no_trace(bright, world, tmp_path, tile):
    run(bright(), world, tmp_path / "whole.zarr", network=NetworkOptions(tile=(32, 32, 32)))
    run(bright(), world, tmp_path / "parts.zarr", network=NetworkOptions(tile=tile))
    np.testing.assert_array_equal(
        read(tmp_path / "whole.zarr", *MITO), read(tmp_path / "parts.zarr", *MITO)
    )


def test_columns_leave_no_trace(bright, world, tmp_path, monkeypatch):
    from lamella.training.cellmap import passes, predict, written

    run(bright(), world, tmp_path / "whole.zarr")
    for module in (passes, written):
        monkeypatch.setattr(module, "CHUNK", 16)
    n_columns = []

    def narrow(*args, **words):
        made = passes.plan_pass(*args, **words, band_bytes=1 << 12)
        n_columns.append(len(made.plan.columns))
        return made

    monkeypatch.setattr(predict, "plan_pass", narrow)
    run(bright(), world, tmp_path / "parts.zarr")
    assert min(n_columns) > 4
    np.testing.assert_array_equal(
        read(tmp_path / "whole.zarr", *MITO), read(tmp_path / "parts.zarr", *MITO)
    )


def test_the_network_sees_what_lies_around_the_crop(bright, world, tmp_path):
    """A network that looks eight voxels to the left sees beyond the crop's border."""

    def left(batch):
        moved = np.full_like(batch, np.nan)
        moved[..., 8:] = batch[..., :-8]
        moved[..., :8] = 0
        return np.stack([moved * 8, -moved * 8], axis=1)

    run(
        bright(left, id="left"), world, tmp_path / "out.zarr",
        network=NetworkOptions(tile=(16, 16, 32), overlap_fraction=0.5),
    )  # fmt: skip
    found = read(tmp_path / "out.zarr", *MITO)
    raw = read(world, "jrc_b", "jrc_b.zarr", "recon-1", "em", "fibsem-uint8", "s0")
    expected = raw[10:34, 12:40, 8:40] == 200
    # Every second voxel of 4 nm and its neighbour lie in one of 8 nm.
    got = found[::2, ::2, ::2] > 0
    assert (got & expected).sum() / (got | expected).sum() > 0.85


# --- Objects -------------------------------------------------------------------------------------


def test_classes_of_objects_get_ids_and_others_a_mask(bright, world, tmp_path):
    made = run(bright(), world, tmp_path / "out.zarr")
    ids = read(tmp_path / "out.zarr", *MITO)
    assert ids.dtype == np.uint32
    assert set(np.unique(ids)) == {0, 1, 2}
    er = read(tmp_path / "out.zarr", "jrc_b.zarr", "crop5", "er")
    assert er.dtype == np.uint8
    assert set(np.unique(er)) == {0, 1}
    assert {one.label.name: one.n_objects for one in made.labels} == {"mito": 2, "er": None}


def test_small_objects_are_dropped_by_their_size_in_nanometres(bright, world, tmp_path):
    sizes = np.bincount(read(world, *TRUTH).ravel())[1:] * 64
    least = Size(float(sizes.mean()), "nm")
    made = run(
        bright(), world, tmp_path / "out.zarr",
        objects=ObjectOptions(min_size=least), classes=("mito",),
    )  # fmt: skip
    assert [one.n_objects for one in made.labels] == [1]
    assert set(np.unique(read(tmp_path / "out.zarr", *MITO))) == {0, 1}


def test_a_watershed_splits_by_distance_in_nanometres(bright, tmp_path, write_pyramid):
    base = tmp_path / "data" / "jrc_w" / "jrc_w.zarr" / "recon-1"
    z, y, x = np.mgrid[:16, :32, :56]
    balls = [(z - 8) ** 2 + (y - 16) ** 2 + (x - c) ** 2 < 49 for c in (21, 33)]
    raw = np.where(balls[0] | balls[1], 200, 60).astype(np.uint8)
    write_pyramid(base / "em" / "fibsem-uint8", [raw], spacing=(8.0,) * 3)
    labels = (raw == 200).astype(np.uint8)[:, 4:28, 8:48]
    write_pyramid(
        base / "labels" / "groundtruth" / "crop1" / "mito", [labels],
        spacing=(8.0,) * 3, origin=(0.0, 32.0, 64.0),
    )  # fmt: skip

    def n(**words):
        out = tmp_path / "out.zarr"
        shutil.rmtree(out, ignore_errors=True)
        (made,) = run(
            bright(), tmp_path / "data", out, classes=("mito",), objects=ObjectOptions(**words)
        ).labels
        return made.n_objects

    assert n(method="components") == 1
    assert n(method="watershed") == 2
    assert n(method="watershed", seed_distance_nm=200.0) == 1
    assert n(method="none") is None


def test_a_model_of_objects_makes_them_itself(bright, world, tmp_path):
    """Foreground and boundary: the boundary is where raw is of middle brightness."""

    def maps(batch):
        return np.stack([batch * 8, np.full_like(batch, -9)], axis=1)

    words = {
        "id": "objects", "task": "instance", "names": ("mito",), "n_outputs": 2,
        "decoder": DecoderDoc(kind="boundary_watershed"),
    }  # fmt: skip
    (made,) = run(bright(maps, **words), world, tmp_path / "out.zarr").labels
    assert made.n_objects == 2
    found, truth = read(tmp_path / "out.zarr", *MITO), read(world, *TRUTH)
    assert set(np.unique(found)) == {0, 1, 2}
    overlap = ((found > 0) & (truth > 0)).sum() / ((found > 0) | (truth > 0)).sum()
    assert overlap > 0.85
    # Pieces of its foreground, where that is asked for.
    (made,) = run(
        bright(maps, **words), world, tmp_path / "pieces.zarr",
        objects=ObjectOptions(method="components"),
    ).labels  # fmt: skip
    assert made.n_objects == 2


def test_a_softmax_model_and_a_2d_model(bright, world, tmp_path):
    def shares(batch):
        return np.stack([np.zeros_like(batch), batch * 8, -batch * 8], axis=1)

    soft = {"id": "soft", "decoder": DecoderDoc(kind="argmax"), "n_outputs": 3}
    run(bright(shares, **soft), world, tmp_path / "soft.zarr")
    run(bright(), world, tmp_path / "sigmoid.zarr")
    soft, sigmoid = (read(tmp_path / f"{n}.zarr", *MITO) > 0 for n in ("soft", "sigmoid"))
    assert (soft == sigmoid).mean() > 0.99
    flat = bright(
        id="flat", axes="yx", tile=(16, 16), divisor=(2, 2), nm=None,
        spacing=SpacingDoc(values=(8.0, 8.0), unit="nm"),
    )  # fmt: skip
    run(flat, world, tmp_path / "flat.zarr")
    assert ((read(tmp_path / "flat.zarr", *MITO) > 0) == sigmoid).mean() > 0.99


# --- Going on, and being read --------------------------------------------------------------------


def test_what_is_finished_is_not_predicted_again(bright, world, tmp_path):
    out = tmp_path / "out.zarr"
    run(bright(), world, out, classes=("mito",))
    before = (out / Path(*MITO) / ".zattrs").stat().st_mtime_ns
    Bright.calls = 0
    made = run(bright(), world, out)
    assert {one.label.name: one.was_there for one in made.labels} == {"mito": True, "er": False}
    assert Bright.calls > 0
    assert (out / Path(*MITO) / ".zattrs").stat().st_mtime_ns == before
    Bright.calls = 0
    assert all(one.was_there for one in run(bright(), world, out).labels)
    assert Bright.calls == 0


class StopsAt(SilentSink):
    """Asks to stop after some tiles."""

    def __init__(self, n):
        super().__init__()
        self._n = n

    def emit(self, progress):
        if progress.stage == "predicting" and progress.done >= self._n:
            self.token.cancel()


def test_a_stop_leaves_nothing_half_done(bright, world, tmp_path):
    out = tmp_path / "out.zarr"
    with pytest.raises(RunCancelledError):
        predict_cellmap(bright(), str(world), out, sink=StopsAt(3))
    assert not (out / Path(*MITO)).exists()
    # What is half done has a hidden name, which nobody reads.
    label = run(bright(), world, tmp_path / "whole.zarr").labels[0].label
    assert find_prediction(Tree.open(str(out)), label) is None
    run(bright(), world, out)
    np.testing.assert_array_equal(read(out, *MITO), read(tmp_path / "whole.zarr", *MITO))
    assert not list(out.rglob(".*.part"))
    assert not list(out.rglob(".*.mask"))


def test_another_model_is_not_mixed_in(bright, world, tmp_path):
    out = tmp_path / "out.zarr"
    run(bright(), world, out)
    other = ModelFolder(Path("bright"), card(), "b" * 64)
    with pytest.raises(OutputExistsError, match="another model"):
        run(other, world, out)
    with pytest.raises(OutputExistsError, match="another instances"):
        run(bright(), world, out, objects=ObjectOptions(method="watershed"))
    made = run(other, world, out, overwrite=True)
    assert not any(one.was_there for one in made.labels)


def test_a_device_with_little_memory_gets_smaller_tiles(bright, world, tmp_path, monkeypatch):
    plain = OpenedNetwork._open

    def open_it(self):
        if self.settings.tile[0] > 8:
            raise DeviceMemoryError("the device has no room")
        return plain(self)

    monkeypatch.setattr(OpenedNetwork, "_open", open_it)
    out = tmp_path / "out.zarr"
    made = run(bright(), world, out)
    assert any("tiles of 8 x 8 x 8 are used" in said for said in made.warnings)
    assert all(one.was_there for one in run(bright(), world, out).labels)


def test_score_and_pack_read_it(bright, world, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    run(bright(), world, out)
    score = score_cellmap(str(out), str(world))
    assert score.official.classes["mito"].f1 == 1.0
    assert score.official.classes["er"].score == 0.0
    manifest = tmp_path / "manifest.csv"
    rows = ["crop_name,dataset,class_label,voxel_size,translation,shape"]
    rows += [f"5,jrc_b,{n},[4.0;4.0;4.0],[78.0;94.0;126.0],[48;56;64]" for n in ("mito", "er")]
    manifest.write_text("\n".join(rows))
    words = ["cellmap", "pack", str(out), str(tmp_path / "s.zip"), "--manifest", str(manifest)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_labels"] == 2


def test_crops_of_a_manifest_need_no_labels(bright, world, tmp_path):
    shutil.rmtree(world / "jrc_b" / "jrc_b.zarr" / "recon-1" / "labels")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "557,jrc_b,mito,[8.0;8.0;8.0],[80.0;96.0;128.0],[24;28;32]\n"
        "557,jrc_b,nuc,[8.0;8.0;8.0],[80.0;96.0;128.0],[24;28;32]\n"
        "558,jrc_other,mito,[8.0;8.0;8.0],[80.0;96.0;128.0],[24;28;32]\n"
    )
    wanted = read_manifest(manifest)
    made = predict_cellmap(bright(), str(world), tmp_path / "out.zarr", wanted=wanted)
    assert [(one.label.crop, one.label.name) for one in made.labels] == [("crop557", "mito")]
    assert any("no raw data of jrc_other" in said for said in made.warnings)
    found = read(tmp_path / "out.zarr", "jrc_b.zarr", "crop557", "mito")
    raw = read(world, "jrc_b", "jrc_b.zarr", "recon-1", "em", "fibsem-uint8", "s0")
    np.testing.assert_array_equal(found > 0, raw[10:34, 12:40, 16:48] == 200)


# --- What may be wrong ---------------------------------------------------------------------------


def manifest_row(tmp_path, row):
    path = tmp_path / "manifest.csv"
    path.write_text(f"crop_name,dataset,class_label,voxel_size,translation,shape\n{row}\n")
    return read_manifest(path)


def test_a_crop_outside_the_raw_data_is_refused(bright, world, tmp_path):
    for origin in ("[9000;96;128]", "[300;96;128]"):
        wanted = manifest_row(tmp_path, f"1,jrc_b,mito,[8;8;8],{origin},[24;28;32]")
        with pytest.raises(InputError, match="jrc_b/crop1 spans") as caught:
            predict_cellmap(bright(), str(world), tmp_path / "out.zarr", wanted=wanted)
        assert "translation" in (caught.value.hint or "")


def test_raw_data_that_were_not_fetched_are_refused(bright, world, tmp_path):
    em = world / "jrc_b" / "jrc_b.zarr" / "recon-1" / "em" / "fibsem-uint8"
    (em / "s0" / "2.2.3").unlink()
    (em / "s1" / "1.1.1").unlink()
    with pytest.raises(InputError, match=r"chunks of .*s\d were not fetched, such as"):
        run(bright(), world, tmp_path / "out.zarr")


def test_a_corrupt_chunk_is_named(bright, world, tmp_path):
    em = world / "jrc_b" / "jrc_b.zarr" / "recon-1" / "em" / "fibsem-uint8"
    (em / "s0" / "2.2.3").write_bytes(b"not a chunk")
    with pytest.raises(UnreadableFileError, match=r"2\.2\.3"):
        run(bright(), world, tmp_path / "out.zarr")


def test_models_and_classes_that_do_not_fit_are_refused(bright, world, tmp_path):
    out = tmp_path / "out.zarr"
    with pytest.raises(InputError, match="no class nuc") as caught:
        run(bright(), world, out, classes=("nuc",))
    assert "mito, er" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="2 channels"):
        run(bright(n_channels=2), world, out)
    with pytest.raises(InputError, match="no crop below"):
        run(bright(), world, out, crops=("crop9",))
    with pytest.raises(InputError, match=r"trained on voxels of 0\.1"):
        run(bright(nm=(0.1,) * 3), world, out)
    with pytest.raises(InputError, match="multiple of"):
        run(bright(), world, out, network=NetworkOptions(tile=(15, 16, 16)))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(bright(), world, tmp_path / "file")
    wanted = manifest_row(tmp_path, "1,jrc_x,mito,[8;8;8],[0;0;0],[4;4;4]")
    with pytest.raises(InputError, match="no raw data of jrc_x"):
        predict_cellmap(bright(), str(world), out, wanted=wanted)


def test_the_command_says_what_is_wrong(world, tmp_path, capsys):
    words = ["cellmap", "predict", str(tmp_path / "nothing"), str(world), "-o", str(tmp_path / "o")]
    assert main(words) != 0
    assert "nothing" in capsys.readouterr().err
