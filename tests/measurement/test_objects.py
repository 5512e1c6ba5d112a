"""The table of objects: equal to scikit-image, whatever the slabs, names and dtypes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import (
    GeometryError,
    InputError,
    OutputExistsError,
    RunCancelledError,
    StorageError,
)
from lamella.core.progress import CancelToken, SilentSink
from lamella.measurement import MeasureOptions, measure_labels, measure_objects
from lamella.volume.affine import Affine
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.spacing import Spacing
from lamella.volume.volume import Volume

NM = Spacing((3.0, 2.0, 1.0), "nm")


def cells(seed, shape=(9, 10, 11), n=6, dtype=np.uint16):
    """Touching cells and background."""
    rng = np.random.default_rng(seed)
    points = rng.random((n, len(shape))) * shape
    grid = np.stack(np.indices(shape), -1)
    nearest = ((grid[..., None, :] - points) ** 2).sum(-1).argmin(-1)
    names = rng.permutation(100)[:n]
    return names[nearest].astype(dtype) * (rng.random(shape) < 0.8)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(9, 10, 11), (1, 5, 6), (7, 1, 1), (12, 13)]),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint32, np.int64]),
    image_dtype=st.sampled_from([np.uint8, np.int16, np.float32, np.float64, np.int32]),
)
def test_equals_scikit_image(seed, shape, dtype, image_dtype):
    from skimage.measure import regionprops_table

    labels = cells(seed, shape, dtype=dtype)
    image = np.random.default_rng(seed).normal(100, 30, shape).astype(image_dtype)
    spacing = Spacing(NM.values[-len(shape) :], "nm")
    table = measure_objects(labels, spacing=spacing, image=image)
    properties = ("label", "area", "bbox", "centroid", "intensity_mean", "intensity_std")
    if not labels.any():
        assert len(table) == 0
        return
    expected = regionprops_table(
        labels.astype(np.int64),
        image.astype(float),
        properties=(*properties, "intensity_min", "intensity_max"),
    )
    n = len(shape)
    np.testing.assert_array_equal(table.ids, expected["label"])
    np.testing.assert_array_equal(table.voxels, expected["area"])
    np.testing.assert_allclose(table.volume, expected["area"] * spacing.voxel_volume)
    for axis in range(n):
        np.testing.assert_allclose(table.centroid_voxel[:, axis], expected[f"centroid-{axis}"])
        np.testing.assert_array_equal(table.box_start[:, axis], expected[f"bbox-{axis}"])
        np.testing.assert_array_equal(table.box_stop[:, axis], expected[f"bbox-{axis + n}"])
        world = expected[f"centroid-{axis}"] * spacing.values[axis]
        np.testing.assert_allclose(table.centroid[:, axis], world)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(
            getattr(table, f"intensity_{name}"), expected[f"intensity_{name}"], atol=1e-6
        )


@given(seed=st.integers(0, 2**32 - 1), slab_depth=st.integers(1, 12), n_threads=st.integers(1, 3))
def test_slabs_and_threads_change_nothing(seed, slab_depth, n_threads):
    labels = cells(seed)
    image = np.random.default_rng(seed).random(labels.shape)
    whole = measure_objects(labels, spacing=NM, image=image)
    options = MeasureOptions(slab_depth=slab_depth, n_threads=n_threads)
    parts = measure_objects(labels, spacing=NM, image=image, options=options)
    for name, values in whole.columns().items():
        np.testing.assert_array_equal(parts.columns()[name], values, err_msg=name)


@given(seed=st.integers(0, 2**32 - 1))
def test_names_do_not_matter_and_may_have_64_bits(seed):
    labels = cells(seed)
    rng = np.random.default_rng(seed)
    lut = rng.integers(2**62, 2**64 - 1, labels.max() + 1, dtype=np.uint64)
    lut[0] = 0
    table = measure_objects(labels, spacing=NM)
    renamed = measure_objects(lut[labels], spacing=NM)
    order = np.argsort(lut[table.ids])
    np.testing.assert_array_equal(renamed.ids, lut[table.ids][order])
    np.testing.assert_array_equal(renamed.surface, table.surface[order])
    np.testing.assert_array_equal(renamed.box_stop, table.box_stop[order])


def test_a_hundred_thousand_objects():
    labels = np.zeros((100, 100, 100), np.uint32)
    labels[::2, ::2] = np.arange(1, 50 * 50 * 100 + 1).reshape(50, 50, 100)
    table = measure_objects(labels, spacing=NM, options=MeasureOptions(surface=False))
    np.testing.assert_array_equal(table.ids, np.arange(1, 250_001))
    assert (table.voxels == 1).all()
    assert np.isnan(table.surface).all()


def test_spread_survives_a_large_offset():
    # Sums of squares around 0 lose everything: 1e9 + noise of 1.
    labels = np.ones((20, 20, 20), np.uint8)
    image = 1e9 + np.random.default_rng(0).normal(0, 1, labels.shape)
    table = measure_objects(labels, spacing=NM, image=image)
    assert table.intensity_std is not None
    assert table.intensity_std[0] == pytest.approx(image.std(), rel=1e-6)


def test_world_centroids_follow_the_affine():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 2, 3] = 1
    matrix = np.array([[0, 2.0, 0, 10], [3.0, 0, 0, 20], [0, 0, -1.0, 30], [0, 0, 0, 1]])
    affine = Affine.from_matrix(matrix)
    table = measure_objects(labels, spacing=NM, affine=affine)
    assert table.centroid.tolist() == [[14, 23, 27]]


def test_border_and_classes():
    labels = np.zeros((6, 8, 8), np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    labels[0:2, 5:7, 5:7] = 2
    labels[4, 4, 7] = 3
    classes = np.where(labels == 2, 5, 4)
    table = measure_objects(labels, spacing=NM, classes=classes)
    assert table.touches_border.tolist() == [False, True, True]
    assert table.classes.tolist() == [4, 5, 4]


def test_labels_with_geometry_and_class_names():
    data = np.zeros((6, 8, 8), np.uint8)
    data[2:4, 2:4, 2:4] = 1
    labels = Labels.from_array(
        data, spacing=NM, origin=(100.0, 0, 0), classes=(LabelClass(1, "mito"),)
    )
    image = Volume.from_array(data * 7.0, spacing=NM)
    columns = measure_labels(labels, image).columns()
    assert columns["class_name"].tolist() == ["mito"]
    assert columns["centroid_z_nm"].tolist() == [107.5]
    assert columns["intensity_mean"].tolist() == [7.0]
    with pytest.raises(GeometryError, match=r"\(6, 8, 8\).*\(5, 8, 8\)"):
        measure_labels(labels, Volume.from_array(data[1:] * 1.0, spacing=NM))
    with pytest.raises(InputError, match="czyx"):
        measure_labels(labels, Volume.from_array(np.zeros((2, 6, 8, 8)), axes="czyx"))


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 4), (0, 3)])
def test_no_objects(shape, tmp_path):
    spacing = Spacing(NM.values[-len(shape) :], "nm")
    table = measure_objects(np.zeros(shape, np.uint8), spacing=spacing)
    assert len(table) == 0
    assert len(table.to_dataframe()) == 0
    text = table.write_csv(tmp_path / "objects.csv").read_text()
    assert text.startswith("id,class,voxels,")
    assert text.count("\n") == 1


def test_csv_and_dataframe(tmp_path):
    import pandas as pd

    labels = cells(3)
    table = measure_objects(labels, spacing=NM, options=MeasureOptions(surface=False))
    path = table.write_csv(tmp_path / "objects.csv")
    frame = pd.read_csv(path)
    expected = table.to_dataframe()
    assert list(frame.columns) == list(expected.columns)
    np.testing.assert_allclose(frame["volume_nm3"], expected["volume_nm3"])
    np.testing.assert_allclose(frame["centroid_x_nm"], expected["centroid_x_nm"], rtol=1e-8)
    assert frame["surface_nm2"].isna().all()
    assert [p.name for p in tmp_path.iterdir()] == ["objects.csv"]
    with pytest.raises(OutputExistsError):
        table.write_csv(path)
    table.write_csv(path, overwrite=True)
    with pytest.raises(StorageError, match="cannot write"):
        table.write_csv(tmp_path / "missing" / "objects.csv")


def test_column_names_carry_the_unit():
    labels = cells(1)
    volume = measure_objects(labels, spacing=Spacing((1.0, 1.0, 1.0), "um")).columns()
    assert {"volume_um3", "surface_um2", "centroid_z_um", "sphericity"} <= set(volume)
    image = measure_objects(labels[0], spacing=Spacing((1.0, 1.0), "mm")).columns()
    assert {"area_mm2", "perimeter_mm", "circularity", "box_y_start"} <= set(image)
    assert not any("_z_" in name for name in image)
    plain = measure_objects(labels, spacing=Spacing((1.0, 1.0, 1.0), "voxel")).columns()
    assert {"volume_vox3", "surface_vox2", "centroid_z_vox"} <= set(plain)


@pytest.mark.parametrize(
    ("labels", "image", "part"),
    [
        (np.zeros((2, 2, 2)), None, "float64"),
        (np.full((2, 2, 2), -1), None, "down to -1"),
        (np.zeros((2, 2), int), None, "one distance per axis"),
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 3)), "(2, 2, 3)"),
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), complex), "complex128"),
    ],
)
def test_bad_input_is_named(labels, image, part):
    with pytest.raises(InputError) as caught:
        measure_objects(labels, spacing=NM, image=image)
    assert part in caught.value.message


def test_cancelling():
    token = CancelToken()
    token.cancel()
    with pytest.raises(RunCancelledError):
        measure_objects(cells(0), spacing=NM, sink=SilentSink(token))
