"""Data sets that nnU-Net's own check accepts, from any format, and what it says to bad ones."""

import contextlib
import io
import json
import multiprocessing
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lamella.cli.dataset import command
from lamella.core.errors import GeometryError, InputError, OutputExistsError
from lamella.io.format import open_labels, open_volume, save_volume
from lamella.training.nnunet_folder import ExportOptions, export_nnunet, find_cases
from lamella.volume import Labels, Volume
from lamella.volume.labels import LabelClass

SHAPE = (6, 12, 10)


def write(folder, name="a", *, unit="nm", values=(0, 3, 7), suffix=".mrc", shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    images, labels = folder / "images", folder / "labels"
    images.mkdir(exist_ok=True)
    labels.mkdir(exist_ok=True)
    geometry = {"spacing": (4.0, 2.0, 2.0), "unit": unit, "origin": (10.0, 20.0, -30.0)}
    image = Volume.from_array(rng.normal(100, 9, shape).astype(np.float32), **geometry)
    drawn = Labels.from_array(
        rng.choice(values, shape).astype(np.uint8),
        classes=(LabelClass(3, "membrane"),),
        **geometry,
    )
    save_volume(image, images / f"{name}{suffix}")
    save_volume(drawn, labels / f"{name}_labels.ome.zarr")
    return image, drawn


def test_labels_and_spacing_arrive_and_the_document_says_the_unit(tmp_path):
    image, drawn = write(tmp_path)
    folder = tmp_path / "Dataset101_Cells"
    done = export_nnunet(
        find_cases(tmp_path / "images", tmp_path / "labels"), folder, ExportOptions(ignore=7)
    )
    assert done.labels == {"background": 0, "membrane": 1, "ignore": 2}
    document = json.loads((folder / "dataset.json").read_text())
    assert document["labels"] == done.labels
    assert document["lamella_spacing_unit"] == "nm"
    assert (document["numTraining"], document["channel_names"]) == (1, {"0": "image"})
    written = open_volume(folder / "imagesTr" / "a_0000.nii.gz")
    np.testing.assert_allclose(written.load(), image.load(), rtol=1e-6)
    assert written.spacing.values == pytest.approx((4.0, 2.0, 2.0))
    labels = open_labels(folder / "labelsTr" / "a.nii.gz").load()
    lut = np.zeros(8, int)
    lut[[3, 7]] = 1, 2
    np.testing.assert_array_equal(labels, lut[drawn.load()])


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["nm", "mm"])
def test_nnunet_accepts_it(tmp_path, unit, monkeypatch):
    pytest.importorskip("nnunetv2")
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path, name, unit=unit, suffix=".ome.zarr", seed=seed)
    folder = tmp_path / "Dataset101_Cells"
    cases = find_cases(tmp_path / "images", tmp_path / "labels")
    export_nnunet(cases, folder, ExportOptions(ignore=7))
    said = io.StringIO()

    class Threads:  # processes would import nnU-Net anew
        Pool = ThreadPool

    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: Threads)
    with contextlib.redirect_stdout(said):
        from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

        verify_dataset_integrity(str(folder), num_processes=1)
    assert "verify_dataset_integrity Done" in said.getvalue()
    assert "Error" not in said.getvalue()
    assert "Warning" not in said.getvalue()


@given(st.sets(st.integers(1, 250), min_size=1, max_size=9))
def test_values_become_consecutive_in_their_order(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("law")
    write(folder, values=(0, *sorted(values)), suffix=".npy", shape=(4, 8, 9))
    done = export_nnunet(
        find_cases(folder / "images", folder / "labels"), folder / "Dataset001_Law"
    )
    after = [done.values[value] for value in sorted(done.values)]
    assert after == list(range(len(after)))
    assert sorted(done.labels.values()) == after


class TestRefusals:
    def test_a_name_that_nnunet_would_not_find(self, tmp_path):
        write(tmp_path)
        cases = find_cases(tmp_path / "images", tmp_path / "labels")
        with pytest.raises(InputError, match="no name of an nnU-Net data set"):
            export_nnunet(cases, tmp_path / "cells")

    def test_what_is_there_stays(self, tmp_path):
        write(tmp_path)
        cases = find_cases(tmp_path / "images", tmp_path / "labels")
        folder = tmp_path / "Dataset101_Cells"
        folder.mkdir()
        (folder / "mine").write_text("x")
        with pytest.raises(OutputExistsError):
            export_nnunet(cases, folder)
        assert (folder / "mine").exists()

    def test_images_without_labels(self, tmp_path):
        write(tmp_path, "a")
        write(tmp_path, "b")
        write(tmp_path, "c")
        (tmp_path / "images" / "b.mrc").unlink()
        with pytest.raises(InputError, match="1 of 3 names have no partner: b"):
            find_cases(tmp_path / "images", tmp_path / "labels")

    def test_labels_of_another_shape(self, tmp_path):
        write(tmp_path)
        odd = Labels.from_array(np.ones((3, 4, 5), np.uint8))
        save_volume(odd, tmp_path / "odd.npy")
        cases = find_cases(tmp_path / "images" / "a.mrc", tmp_path / "odd.npy")
        with pytest.raises(GeometryError, match="has the shape"):
            export_nnunet(cases, tmp_path / "Dataset101_Cells")
        assert not list(tmp_path.glob("*Dataset*"))

    def test_nan(self, tmp_path):
        write(tmp_path)
        bad = np.full(SHAPE, np.nan, np.float32)
        save_volume(
            Volume.from_array(bad, spacing=(4.0, 2.0, 2.0), unit="nm"), tmp_path / "nan.ome.zarr"
        )
        cases = find_cases(tmp_path / "nan.ome.zarr", tmp_path / "labels")
        with pytest.raises(InputError, match="NaN"):
            export_nnunet(cases, tmp_path / "Dataset101_Cells")


def test_the_command_says_what_comes_next(tmp_path):
    write(tmp_path)
    folder = tmp_path / "Dataset101_Cells"
    words = [
        str(tmp_path / "images"),
        str(tmp_path / "labels"),
        "-o",
        str(folder),
        "--class",
        "7=x",
    ]
    done = CliRunner().invoke(command, ["export", *words])
    assert done.exit_code == 0, done.output
    assert "nnUNetv2_plan_and_preprocess -d 101" in done.output
    assert "spacing is written in nm" in done.output
    again = CliRunner().invoke(command, ["export", *words, "--overwrite", "--json"])
    assert json.loads(again.stdout)["labels"] == {"background": 0, "membrane": 1, "x": 2}
