"""Patches and regions of pairs: exact, deterministic, balanced, normalised as inference does."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, GeometryError, InputError, LamellaError
from lamella.inference.normalise import NormalisedSlabs, Normaliser
from lamella.inference.slab import VolumeSlabs
from lamella.inference.statistics import measure
from lamella.io.format import open_volume
from lamella.training.configuration import ClassConfig, PairsConfig, SplitConfig, TaskConfig
from lamella.training.pairs.patch import reflected
from lamella.training.pairs.source import PairsSource
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

ZSCORE = NormalisationDoc()
NONE = NormalisationDoc(kind="none")


def _rng(n=0):
    return np.random.default_rng([0, n])


@pytest.mark.parametrize("shape", [(16, 16), (40, 50), (64, 33), (200, 210)])
def test_patches_show_what_lies_under_their_labels(write_set, task, shape):
    source = PairsSource(write_set(), task(), NONE, axes="yx")
    for n in range(12):
        sample = source.draw(_rng(n), shape)
        assert sample.image.shape == sample.labels.shape == sample.valid.shape == (1, *shape)
        assert sample.image.dtype == np.float32
        assert sample.image.flags.c_contiguous
        assert np.array_equal(sample.labels[0] == 1, sample.image[0] > 200)
        inside = min(shape[0], 40) * min(shape[1], 50)
        assert np.count_nonzero(sample.valid) == inside


def test_the_same_generator_gives_the_same_patch_in_any_order_and_process(write_set, task):
    source = PairsSource(write_set(6), task(), ZSCORE, axes="yx")
    first = {n: source.draw(_rng(n), (24, 24)) for n in range(20)}
    copy = pickle.loads(pickle.dumps(source))
    fresh = PairsSource(write_set(6), task(), ZSCORE, axes="yx")
    for other, order in ((copy, reversed(range(20))), (fresh, range(5, 20, 5))):
        for n in order:
            again = other.draw(_rng(n), (24, 24))
            assert np.array_equal(again.image, first[n].image)
            assert np.array_equal(again.labels, first[n].labels)
            assert np.array_equal(again.valid, first[n].valid)


@pytest.mark.parametrize(
    "normalisation",
    [
        NormalisationDoc(),
        NormalisationDoc(scope="slice"),
        NormalisationDoc(kind="percentile", low=1, high=99, clip=True),
        NormalisationDoc(kind="fixed", mean=100, std=50, low=10, high=240),
    ],
)
@pytest.mark.parametrize("axes", ["zyx", "yx"])
def test_normalisation_is_that_of_inference(write_set, task, normalisation, axes):
    config = write_set(3, (6, 20, 24), suffix=".npy")
    source = PairsSource(config, task(), normalisation, axes=axes)
    regions = source.regions("validation")
    path = f"{config.root}/{regions[0].name.split(' ')[0]}"
    slabs = VolumeSlabs(open_volume(path))
    found = measure(slabs, normalisation)
    normaliser = Normaliser.resolve(normalisation, found.statistics, fill=None)
    expected = NormalisedSlabs(slabs, normaliser).read(Box((0, 0, 0), (6, 20, 24)))
    if axes == "zyx":
        actual = regions[0].read(Box((0, 0, 0), (6, 20, 24))).image
    else:
        assert len(regions) == 6
        actual = np.stack([r.read(Box((0, 0), (20, 24))).image for r in regions], axis=1)
    assert np.array_equal(actual, expected)


def test_a_rare_class_is_seen_as_often_as_others(tmp_path, write, task):
    for number in range(5):
        image = np.full((64, 64), number, np.uint8)
        labels = np.zeros((64, 64), np.uint8)
        labels[:, :32] = 1
        if number == 3:
            labels[60, 60] = 2
        write(tmp_path / f"images/{number}.png", image)
        write(tmp_path / f"labels/{number}.png", labels)
    config = PairsConfig(
        root=str(tmp_path),
        foreground_fraction=1.0,
        split=SplitConfig(validation=("images/0",)),
    )
    source = PairsSource(config, task("semantic", "common", "rare"), NONE, axes="yx")
    centers = [source.draw(_rng(n), (9, 9)).labels[0] for n in range(200)]
    rare = sum(bool((labels == 2).any()) for labels in centers)
    assert 70 < rare < 130
    assert source.info.warnings
    assert "no validation image has a voxel of rare" in source.info.warnings[-1]


def test_objects_volumes_channels(tmp_path, write, task):
    rng = np.random.default_rng(0)
    for number in range(2):
        write(tmp_path / f"images/{number}.npy", rng.random((3, 8, 9, 10)).astype(np.float32))
        write(tmp_path / f"labels/{number}.npy", rng.integers(0, 90000, (8, 9, 10)))
    config = PairsConfig(root=str(tmp_path), channels=(2, 0))
    with pytest.raises(LamellaError):  # four axes could be anything
        PairsSource(config, task("flows"), NONE, axes="zyx")


def test_colour_channels_are_chosen(tmp_path, write, task):
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)
        write(tmp_path / f"images/{number}.png", image)
        write(tmp_path / f"labels/{number}.png", (image[..., 2] > 99).astype(np.uint8))
    source = PairsSource(PairsConfig(root=str(tmp_path), channels=(2,)), task(), NONE, axes="yx")
    assert source.info.n_channels == 1
    sample = source.draw(_rng(), (8, 8))
    assert np.array_equal(sample.image > 99, sample.labels == 1)
    assert (
        PairsSource(PairsConfig(root=str(tmp_path)), task(), NONE, axes="yx").info.n_channels == 3
    )
    write(tmp_path / "images/0.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(InputError, match="differ in their channels"):
        PairsSource(PairsConfig(root=str(tmp_path)), task(), NONE, axes="yx")
    with pytest.raises(InputError, match="has 1 channel"):
        PairsSource(PairsConfig(root=str(tmp_path), channels=(2,)), task(), NONE, axes="yx")


def test_slices_of_volumes_for_2d_networks(write_set, task):
    config = write_set(3, (5, 20, 24), suffix=".npy")
    source = PairsSource(config, task(), NONE, axes="yx")
    sample = source.draw(_rng(), (8, 8))
    assert sample.image.shape == (1, 8, 8)
    assert np.array_equal(sample.labels == 1, sample.image > 200)
    region = source.regions("validation")[4]
    assert region.name.endswith("z=4")
    assert region.shape == (20, 24)
    with pytest.raises(AxesError, match="is an image, the patches are volumes"):
        PairsSource(write_set(folder="flat"), task(), NONE, axes="zyx")
    with pytest.raises(InputError, match="patches are yx"):
        source.draw(_rng(), (4, 8, 8))


def test_parts_of_one_volume_never_touch(tmp_path, write, task):
    volume = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, None], (4, 8, 60)).copy()
    write(tmp_path / "image.npy", volume)
    write(tmp_path / "labels.npy", np.ones_like(volume))
    split = SplitConfig(by="part", validation_fraction=0.2, test_fraction=0.3)
    config = PairsConfig(root=str(tmp_path), images="image.npy", labels="labels.npy", split=split)
    source = PairsSource(config, task(), NONE, axes="zyx")
    seen = {v for n in range(60) for v in np.unique(source.draw(_rng(n), (2, 4, 16)).image)}
    assert seen == set(range(30))
    wide = source.draw(_rng(), (2, 4, 50))
    assert wide.image.max() < 30
    (validation,), (test,) = source.regions("validation"), source.regions("test")
    assert validation.shape == (4, 8, 12)
    assert np.unique(validation.read(Box((0, 0, 0), (4, 8, 12))).image).tolist() == [*range(30, 42)]
    assert np.unique(test.read(Box((0, 0, 0), (4, 8, 18))).image).tolist() == [*range(42, 60)]
    assert any("different parts of the same images" in text for text in source.info.warnings)


def test_masks_and_ignored_values(write_set, write, task, tmp_path):
    config = write_set()
    root = tmp_path / "set"
    for number in range(4):
        known = np.zeros((40, 50), np.uint8)
        known[10:20, 10:20] = 255
        write(root / f"known/case{number}.png", known)
    config = config.model_copy(update={"masks": "known/*.png"})
    source = PairsSource(config, task(), NONE, axes="yx")
    for n in range(10):
        sample = source.draw(_rng(n), (16, 16))
        assert sample.valid.any()
        assert not sample.labels[~sample.valid].any()
    whole = source.regions("validation")[0].read(Box((0, 0), (40, 50)))
    assert np.count_nonzero(whole.valid) == 100


def test_the_cache_is_bounded_and_changes_nothing(write_set, task):
    config = write_set(8, (60, 70))
    small = PairsSource(config, task(), ZSCORE, axes="yx", cache_bytes=20_000)
    large = PairsSource(config, task(), ZSCORE, axes="yx")
    none = PairsSource(config, task(), ZSCORE, axes="yx", cache_bytes=4)
    for n in range(30):
        samples = [source.draw(_rng(n), (20, 20)) for source in (small, large, none)]
        for other in samples[1:]:
            assert np.array_equal(samples[0].image, other.image)
            assert np.array_equal(samples[0].labels, other.labels)
        assert small._cache.n_bytes <= 20_000


def test_threads_get_the_same_patches(write_set, task):
    config = write_set(8, (60, 70))
    expected = PairsSource(config, task(), ZSCORE, axes="yx")
    shared = PairsSource(config, task(), ZSCORE, axes="yx", cache_bytes=20_000)
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda n: shared.draw(_rng(n), (20, 20)), range(100)))
    for n, sample in enumerate(samples):
        assert np.array_equal(sample.image, expected.draw(_rng(n), (20, 20)).image)


def test_a_large_data_set_opens_at_once(tmp_path, write, task):
    write(tmp_path / "images/0.png", np.zeros((8, 8), np.uint8))
    write(tmp_path / "labels/0.png", np.ones((8, 8), np.uint8))
    for kind in ("images", "labels"):
        for number in range(1, 4000):
            os.link(tmp_path / kind / "0.png", tmp_path / kind / f"{number}.png")
    started = time.perf_counter()
    source = PairsSource(PairsConfig(root=str(tmp_path)), task(), ZSCORE, axes="yx")
    assert time.perf_counter() - started < 30  # 2 s on a quiet machine
    assert len(source.info.specimens["train"]) == 3200
    assert source.draw(_rng(), (4, 4)).labels.all()


def test_bad_files_are_named(write_set, write, task, tmp_path):
    root = tmp_path / "set"
    config = write_set()
    write(root / "labels/case1.png", np.zeros((40, 51), np.uint8))
    with pytest.raises(GeometryError, match=r"labels/case1.png has 40 x 51 voxels, its image"):
        PairsSource(config, task(), NONE, axes="yx")
    (root / "labels/case1.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(LamellaError, match=r"case1\.png"):
        PairsSource(config, task(), NONE, axes="yx")
    (root / "labels/case1.png").unlink()
    with pytest.raises(InputError, match=r"1 image\(s\) without labels: images/case1.png"):
        PairsSource(config, task(), NONE, axes="yx")


def test_empty_masks_and_one_image(write_set, write, task, tmp_path):
    config = write_set()
    for number in range(4):
        write(tmp_path / f"set/labels/case{number}.png", np.zeros((40, 50), np.uint8))
    with pytest.raises(InputError, match="no training image has a voxel of thing"):
        PairsSource(config, task(), NONE, axes="yx")
    with pytest.raises(InputError, match="only 1 specimen"):
        PairsSource(write_set(1, folder="one"), task(), NONE, axes="yx")


def test_copies_are_leakage(write_set, task, tmp_path):
    config = write_set(4, split=SplitConfig(validation=("images/case1",)))
    for kind in ("images", "labels"):
        data = (tmp_path / f"set/{kind}/case0.png").read_bytes()
        (tmp_path / f"set/{kind}/case1.png").write_bytes(data)
    source = PairsSource(config, task(), NONE, axes="yx")
    assert any("same image stands on several sides" in text for text in source.info.warnings)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_reflection(n, before, after):
    array = np.arange(1, n + 1)[None]
    found = reflected(array, [before], [after])
    assert found.shape == (1, n + before + after)
    assert np.array_equal(found[:, before : before + n], array)
    if n == 1:
        assert found.sum() == 1
    else:
        period = np.concatenate([array[0], array[0][-2:0:-1]])
        expected = [period[(i - before) % len(period)] for i in range(n + before + after)]
        assert found[0].tolist() == expected


# --- real data ----------------------------------------------------------------------------------


def test_vnc_slices(data_dir, task):
    config = PairsConfig(
        root=str(data_dir / "em/drosophila_vnc"),
        images="stack1/raw/*",
        labels={"mito": "stack1/mitochondria/*"},
        specimen="stack.",
        split=SplitConfig(by="file", test=("raw/1[5-9].tif",), validation=("raw/1[34].tif",)),
    )
    source = PairsSource(config, task("semantic", "mito"), ZSCORE, axes="yx")
    assert [r.name[-6:] for r in source.regions("test")] == [f"{n}.tif" for n in range(15, 20)]
    assert len(source.regions("validation")) == 2
    assert source.info.specimens["train"] == source.info.specimens["test"] == ("stack1",)
    assert "specimen(s) stand on several sides" in source.info.warnings[0]
    region = source.regions("test")[0]
    sample = region.read(Box((100, 200), (500, 700)))
    mask = open_volume(data_dir / "em/drosophila_vnc/stack1/mitochondria/15.png").load()
    assert np.array_equal(sample.labels[0], mask[100:500, 200:700] > 127)
    image = open_volume(data_dir / "em/drosophila_vnc/stack1/raw/15.tif").load()
    expected = (image - image.mean()) / image.std()
    assert np.allclose(sample.image[0], expected[100:500, 200:700], atol=1e-5)
    share = np.mean([source.draw(_rng(n), (128, 128)).labels.mean() for n in range(30)])
    assert share > 0.1  # 5 % of all voxels


def test_axons_and_myelin_by_rat(data_dir, task):
    pattern = "derivatives/labels/sub-*/micr/*_SEM_seg-{}-manual.png"
    config = PairsConfig(
        root=str(data_dir / "em/axondeepseg_sem"),
        images="sub-*/micr/*_SEM.png",
        labels={name: pattern.format(name) for name in ("axon", "myelin")},
        split=SplitConfig(test=("sub-rat3",)),
    )
    source = PairsSource(config, task("semantic", "axon", "myelin"), ZSCORE, axes="yx")
    assert source.info.specimens["test"] == ("sub-rat3",)
    assert len(source.regions("test")) == 3
    assert source.info.spacing is None  # 0.18 and 0.093 um
    assert any("spacings differ" in text for text in source.info.warnings)
    assert set(np.unique(source.draw(_rng(), (256, 256)).labels)) == {0, 1, 2}


def test_hdf5_data_sets_in_one_file(data_dir, task):
    config = PairsConfig(
        root=str(data_dir / "fluorescence/plantseg"),
        images="*.h5::raw",
        labels="*.h5::label",
        split=SplitConfig(by="part"),
    )
    source = PairsSource(config, task("boundary", "cell"), ZSCORE, axes="zyx")
    assert source.info.spacing.values == (0.235, 0.15, 0.15)
    sample = source.draw(_rng(), (16, 48, 48))
    assert sample.labels.dtype == np.int64
    assert len(np.unique(sample.labels)) > 3


def test_ome_zarr_with_labels_inside(data_dir, tmp_path, task):
    from lamella.io.format import save_volume
    from lamella.volume import Labels, Volume

    rng = np.random.default_rng(0)
    for number in range(2):
        image = rng.integers(0, 255, (16, 40, 40)).astype(np.uint8)
        path = tmp_path / f"v{number}.ome.zarr"
        save_volume(Volume.from_array(image, spacing=(8, 4, 4), unit="nm"), path)
        labels = Labels.from_array((image > 99).astype(np.uint8), spacing=(8, 4, 4), unit="nm")
        save_volume(labels, tmp_path / f"labels/v{number}.ome.zarr")
    config = PairsConfig(root=str(tmp_path), images="*.zarr", labels="labels/*.zarr")
    source = PairsSource(config, task(), NONE, axes="zyx", cache_bytes=1000)
    assert source.info.spacing.values == (8, 4, 4)
    sample = source.draw(_rng(), (8, 16, 16))
    assert np.array_equal(sample.image > 99, sample.labels == 1)
    assert np.array_equal(sample.valid, np.ones_like(sample.valid))


def test_a_class_list_gives_channels(write_set, task):
    several = TaskConfig(
        kind="multilabel",
        classes=(ClassConfig(name="a", values=(1,)), ClassConfig(name="any", values=(0, 1))),
    )
    source = PairsSource(write_set(), several, NONE, axes="yx")
    sample = source.draw(_rng(), (8, 8))
    assert sample.labels.shape == (2, 8, 8)
    assert sample.labels[1].all()
