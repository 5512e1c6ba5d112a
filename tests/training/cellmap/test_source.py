"""Patches of crops: raw and labels on one place, unknown is not learnt, absent is."""

import json
import pickle
import time

import numpy as np
import pytest

from lamella.core.errors import InputError, MissingPathError, UnreadableFileError
from lamella.training.cellmap.source import CellmapSource
from lamella.training.configuration import (
    CellmapConfig,
    ClassConfig,
    SplitConfig,
    TaskConfig,
)
from lamella.volume.box import Box
from lamella.wire.card import NormalisationDoc

FIXED = NormalisationDoc(kind="fixed")
EVERYTHING = SplitConfig(validation_fraction=0.0)


def task(kind="multilabel", classes=("mito",)):
    return TaskConfig(kind=kind, classes=tuple(ClassConfig(name=name) for name in classes))


def open_source(root, *, kind="multilabel", classes=("mito",), split=EVERYTHING, **words):
    words.setdefault("spacing", (8.0, 8.0, 8.0))
    config = CellmapConfig(root=str(root), split=split, **words)
    return CellmapSource(config, task(kind, classes), FIXED)


def patches(source, shape, n, seed=0):
    return [source.draw(np.random.default_rng([seed, i]), shape) for i in range(n)]


@pytest.fixture
def mini(data_dir):
    return data_dir / "em" / "cellmap_mini"


MINI_NM = (50.0, 4.6, 4.6)


# --- The law of the place: labels lie on what they were drawn on ------------------------------


@pytest.mark.parametrize("spacing", [MINI_NM, (50.0, 9.2, 9.2), (50.0, 6.0, 7.1), (50.0, 2.3, 2.3)])
def test_the_membrane_lies_on_the_raw_data_only_at_zero_shift(mini, spacing):
    source = open_source(mini, classes=("pm",), spacing=spacing, class_balance=1.0)
    found = patches(source, (8, 160, 160), 6)
    assert all(sample.valid.all() for sample in found)

    def correlation(dy, dx):
        # Membranes are dark. Raw is shifted against the labels, away from the borders.
        inner = slice(8, -8)
        raw = np.concatenate(
            [np.roll(s.image[0], (dy, dx), (1, 2))[:, inner, inner].ravel() for s in found]
        )
        labels = np.concatenate([s.labels[0][:, inner, inner].ravel() for s in found])
        return -np.corrcoef(raw, labels)[0, 1]

    here = correlation(0, 0)
    assert here > 0.2
    for n in (1, 2, 3):
        for shift in ((n, 0), (-n, 0), (0, n), (0, -n)):
            assert correlation(*shift) < here, shift


def edges(tmp_path, write_pyramid, *, label_nm, origin_nm, raw_nm=8.0):
    """A world whose raw data are bright in one cuboid, which is also labelled."""
    base = tmp_path / "jrc_edge" / "jrc_edge.zarr" / "recon-1"
    low, high = np.array([88.0, 104.0, 96.0]), np.array([152.0, 176.0, 208.0])

    def inside(shape, spacing, origin):
        masks = [
            (lambda at, a=a, b=b: (at > a) & (at < b))(o + np.arange(n) * spacing)
            for n, o, a, b in zip(shape, origin, low, high, strict=True)
        ]
        return masks[0][:, None, None] & masks[1][:, None] & masks[2]

    raw = np.where(inside((40, 40, 40), raw_nm, (0, 0, 0)), 200, 60).astype(np.uint8)
    write_pyramid(base / "em" / "fibsem-uint8", [raw], spacing=(raw_nm,) * 3)
    shape = tuple(int(160 / label_nm) for _ in range(3))
    labels = inside(shape, label_nm, origin_nm).astype(np.uint8)
    crop = base / "labels" / "groundtruth" / "crop1"
    write_pyramid(crop / "mito", [labels], spacing=(label_nm,) * 3, origin=origin_nm)
    return tmp_path


@pytest.mark.parametrize(
    ("label_nm", "origin"),
    [
        (8.0, (64.0, 64.0, 64.0)),
        (4.0, (62.0, 62.0, 62.0)),  # twice as fine: half a voxel
        (2.0, (61.0, 61.0, 61.0)),  # four times: .375 of a voxel
        (16.0, (68.0, 68.0, 68.0)),  # coarser
    ],
)
@pytest.mark.parametrize("network_nm", [8.0, 4.0, 10.0])
def test_half_voxel_translations_are_exact(tmp_path, write_pyramid, label_nm, origin, network_nm):
    root = edges(tmp_path, write_pyramid, label_nm=label_nm, origin_nm=origin)
    source = open_source(root, spacing=(network_nm,) * 3)
    place = source.regions("validation") or list(source._places["train"])
    view = source.view(place[0])
    sample = source.read(place[0], view.reach)
    assert sample.valid.all()
    bright = sample.image[0] > 0.04  # half way between 60 and 200, scaled
    if label_nm == 8.0 and network_nm == 8.0:
        np.testing.assert_array_equal(bright, sample.labels[0] > 0)
    # The middle of both, in nm: no systematic shift along any axis.
    for axis in range(3):
        middles = []
        for mask in (bright, sample.labels[0] > 0):
            at = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            middles.append(at.mean() * network_nm)
        assert abs(middles[0] - middles[1]) <= label_nm / 2 + 1e-6


# --- Unknown, absent, present --------------------------------------------------------------------


def test_a_class_without_an_array_is_unknown_and_one_of_zeros_is_absent(mini):
    names = ("mito", "pm", "perox")
    source = open_source(mini, classes=names, spacing=MINI_NM)
    known = {}
    for place in source._places["train"]:
        sample = source.read(place, source.view(place).reach)
        known[place.name] = {
            name: ("unknown" if not v.any() else "present" if y.any() else "absent")
            for name, y, v in zip(names, sample.labels, sample.valid, strict=True)
        }
    assert known == {
        "crop101": {"mito": "present", "pm": "present", "perox": "unknown"},
        "crop102": {"mito": "present", "pm": "unknown", "perox": "unknown"},
        "crop103": {"mito": "present", "pm": "unknown", "perox": "absent"},
    }
    assert any("perox has no voxel" in said for said in source.info.warnings)


def test_a_crop_without_a_class_gives_its_output_no_gradient(mini):
    torch = pytest.importorskip("torch")
    from lamella.training.losses import build_loss
    from lamella.training.target import Target

    source = open_source(mini, classes=("mito", "pm", "perox"), spacing=MINI_NM)
    by_name = {place.name: place for place in source._places["train"]}
    for name, silent in (("crop101", [2]), ("crop102", [1, 2]), ("crop103", [1])):
        place = by_name[name]
        start = source.view(place).crop.start
        sample = source.read(
            place, Box(start, tuple(a + n for a, n in zip(start, (8, 64, 64), strict=True)))
        )
        target = Target.of_channels(
            torch.from_numpy(sample.labels[None].astype(np.float32)),
            torch.from_numpy(sample.valid[None]),
        )
        logits = torch.randn(target.values.shape, requires_grad=True)
        for term in ("bce", "dice", "focal", "tversky"):
            words = {} if term == "bce" else {"activation": "sigmoid"}
            loss = build_loss([{"name": term, **words}])
            (gradient,) = torch.autograd.grad(loss(logits, target), logits)
            for channel in range(3):
                size = float(gradient[0, channel].abs().max())
                if channel in silent:
                    assert size == 0.0, (name, term, channel)
                else:
                    assert size > 0.0, (name, term, channel)


def groups(tmp_path, write_pyramid):
    """A crop in which the mitochondrial membrane was drawn, the lumen was not; and the ER."""
    base = tmp_path / "jrc_a" / "jrc_a.zarr" / "recon-1"
    raw = np.full((16, 16, 16), 99, np.uint8)
    write_pyramid(base / "em" / "fibsem-uint8", [raw], spacing=(8.0,) * 3)
    crop = base / "labels" / "groundtruth" / "crop1"
    membrane = np.zeros((8, 8, 8), np.uint8)
    membrane[2] = 1
    er = np.zeros_like(membrane)
    er[5] = 1
    for name, array in (("mito_mem", membrane), ("er", er)):
        write_pyramid(crop / name, [array], spacing=(8.0,) * 3, origin=(32.0,) * 3)
    return tmp_path


def test_what_others_imply_is_a_choice(tmp_path, write_pyramid):
    root = groups(tmp_path, write_pyramid)
    names = ("mito_mem", "mito_lum", "mito", "pm")

    def read(implied):
        source = open_source(root, classes=names, implied=implied)
        (place,) = source._places["train"]
        sample = source.read(place, source.view(place).crop)
        return sample.labels, sample.valid

    with pytest.raises(InputError, match="mito_lum, mito, pm: annotated in none"):
        read("none")
    labels, valid = read("all")
    assert valid[0].all()
    # Lumen: not in the membrane, not in the ER, else unknown. The whole: in the membrane.
    assert valid[1].sum() == 128
    assert not labels[1].any()
    assert labels[2].sum() == 64
    assert valid[2].sum() == 128
    assert valid[3].sum() == 128
    with pytest.raises(InputError, match="pm: annotated in none"):
        read("siblings")
    source = open_source(root, classes=names[:3])
    (place,) = source._places["train"]
    sample = source.read(place, source.view(place).crop)
    assert sample.valid[1].sum() == 128
    assert sample.labels[2].sum() == 64


# --- Ids, and classes that exclude each other ----------------------------------------------------


def test_ids_are_kept_for_objects_and_only_there(mini):
    source = open_source(mini, kind="boundary", instances="mito", spacing=MINI_NM)
    sample = source.draw(np.random.default_rng(3), (16, 256, 256))
    assert sample.labels.dtype == np.int64
    assert len(np.unique(sample.labels)) > 3
    binary = open_source(mini, spacing=MINI_NM).draw(np.random.default_rng(3), (16, 256, 256))
    assert set(np.unique(binary.labels)) == {0, 1}


def test_a_softmax_takes_only_classes_that_exclude_each_other(root, mini):
    with pytest.raises(InputError, match="er and ne overlap"):
        open_source(root, kind="semantic", classes=("er", "ne"))
    source = open_source(mini, kind="semantic", classes=("mito", "pm"), spacing=MINI_NM)
    by_name = {place.name: place for place in source._places["train"]}
    sample = source.read(by_name["crop101"], source.view(by_name["crop101"]).crop)
    assert sample.labels.shape[0] == 1
    assert set(np.unique(sample.labels)) == {0, 1, 2}
    assert sample.valid.all()
    # Where only mitochondria were drawn, background is not known to be background.
    sample = source.read(by_name["crop102"], source.view(by_name["crop102"]).crop)
    np.testing.assert_array_equal(sample.valid, sample.labels == 1)


# --- Raw data that were not fetched, and borders -------------------------------------------------


def test_chunks_that_were_not_fetched_teach_nothing(root):
    raw = root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8"
    for chunk in (raw / "s0/0.1.1", *raw.glob("s1/*.*.*")):
        chunk.unlink()
    source = open_source(root)
    assert any("not fetched" in said for said in source.info.warnings)
    (place,) = source._places["train"]
    view = source.view(place)
    assert len(view.missing) == 1
    for sample in patches(source, (4, 4, 4), 20):
        # No black blocks either: what is missing looks like the rest.
        assert sample.image.min() > -1.999
        assert sample.valid.any()
    sample = source.read(place, view.crop)
    assert 0 < sample.valid.mean() < 1


def test_a_finer_level_is_read_where_the_nearest_was_not_fetched(root):
    raw = root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8"
    source = open_source(root, spacing=(16.0,) * 3)
    assert source.view(source._places["train"][0]).raw.path.endswith("s1")
    for chunk in (raw / "s1").glob("*.*.*"):
        chunk.unlink()
    source = open_source(root, spacing=(16.0,) * 3)
    view = source.view(source._places["train"][0])
    assert view.raw.path.endswith("s0")
    assert not view.missing
    assert any("resampled by up to 2" in said for said in source.info.warnings)


def test_no_raw_under_a_crop_leaves_it_out(root):
    for chunk in (root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8").glob("s*/*.*.*"):
        chunk.unlink()
    with pytest.raises(InputError, match="no raw data were fetched"):
        open_source(root)


def test_context_is_shown_where_it_was_fetched_and_teaches_nothing(root):
    source = open_source(root, context_nm=40.0)
    (place,) = source._places["train"]
    view = source.view(place)
    assert view.reach == view.crop.grow(5).clamp((32, 32, 32))
    sample = source.read(place, view.reach)
    inner = view.crop.relative_to(view.reach).slices()
    assert sample.valid[0][inner].all()
    assert sample.valid.sum() == view.crop.size
    assert sample.image.shape[1:] == view.reach.shape
    # A chunk beside the crop that was not fetched ends the context, on that side alone.
    raw = root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8/s0"
    for chunk in raw.glob("*.0.*"):
        chunk.unlink()
    shorter = open_source(root, context_nm=40.0)
    cut = shorter.view(shorter._places["train"][0]).reach
    assert cut.start == (view.reach.start[0], 8, view.reach.start[2])
    assert cut.stop == view.reach.stop


def test_patches_larger_than_the_crop_are_padded_and_the_padding_is_unknown(root):
    source = open_source(root)
    (place,) = source._places["train"]
    crop = source.view(place).crop
    for sample in patches(source, (24, 12, 12), 5):
        assert sample.image.shape == (1, 24, 12, 12)
        assert sample.labels.shape == sample.valid.shape == (1, 24, 12, 12)
        assert sample.valid.sum() == crop.size
        assert np.isfinite(sample.image).all()
        # Reflected, not blank.
        assert sample.image[0, 0].std() > 0.1


# --- Drawing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rare(tmp_path_factory, write_pyramid):
    """Nine crops full of ER, a small one with a lysosome too, in three data sets."""
    root = tmp_path_factory.mktemp("rare")
    rng = np.random.default_rng(1)
    for i in range(3):
        base = root / f"jrc_{i}" / f"jrc_{i}.zarr" / "recon-1"
        raw = rng.integers(1, 255, (32, 32, 96)).astype(np.uint8)
        write_pyramid(base / "em" / "fibsem-uint8", [raw], spacing=(8.0,) * 3, chunks=16)
        for j in range(3):
            crop = base / "labels" / "groundtruth" / f"crop{3 * i + j}"
            er = (rng.random((24, 24, 24)) > 0.5).astype(np.uint8)
            lyso = np.zeros_like(er)
            if (i, j) == (1, 2):
                lyso[3:6, 4:7, 5:8] = 4
            origin = (32.0, 32.0, 256.0 * j)
            for name, array in (("er", er), ("lyso", lyso)):
                write_pyramid(crop / name, [array], spacing=(8.0,) * 3, origin=origin, chunks=16)
    return root


def test_classes_are_balanced_as_configured(rare):
    def share(balance):
        source = open_source(rare, classes=("er", "lyso"), class_balance=balance)
        found = patches(source, (8, 8, 8), 120)
        return np.mean([sample.labels[1].any() for sample in found])

    assert share(0.0) < 0.1
    assert 0.4 < share(1.0) < 0.6
    assert 0.2 < share(0.5) < 0.4


def test_the_same_generator_gives_the_same_patch_in_any_copy(rare):
    source = open_source(rare, classes=("er", "lyso"))
    expected = patches(source, (8, 8, 8), 6)
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(0).permutation(6)
    for i in order:
        found = copy.draw(np.random.default_rng([0, i]), (8, 8, 8))
        for name in ("image", "labels", "valid"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected[i], name))
    assert len(pickle.dumps(source)) < 100_000


def test_regions_read_the_same_in_parts(rare):
    source = open_source(rare, classes=("er",), split=SplitConfig(), context_nm=16.0)
    regions = source.regions("validation")
    assert {region.specimen for region in regions} == set(source.info.specimens["validation"])
    region = regions[0]
    whole = region.read(Box.from_shape(region.shape))
    part = Box((2, 3, 4), (9, 11, 13))
    found = region.read(part)
    np.testing.assert_allclose(found.image[0], whole.image[0][part.slices()])
    np.testing.assert_array_equal(found.labels[0], whole.labels[0][part.slices()])
    np.testing.assert_array_equal(found.valid[0], whole.valid[0][part.slices()])


def test_a_file_system_in_memory_gives_the_same(root):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(root / "jrc_test"), "/source-test/jrc_test", recursive=True)
    try:
        here, there = open_source(root), open_source("memory://source-test")
        for mine, other in zip(
            patches(here, (8,) * 3, 3), patches(there, (8,) * 3, 3), strict=True
        ):
            np.testing.assert_array_equal(mine.image, other.image)
            np.testing.assert_array_equal(mine.labels, other.labels)
    finally:
        memory.rm("/source-test", recursive=True)


def test_memory_is_flat(mini):
    psutil = pytest.importorskip("psutil")
    source = open_source(mini, classes=("mito", "pm"), spacing=(50.0, 9.2, 9.2))
    process = psutil.Process()

    def after(first, last):
        for i in range(first, last):
            source.draw(np.random.default_rng([7, i]), (8, 64, 64))
        return process.memory_info().rss

    before = after(0, 150)
    assert after(150, 500) - before < 24 << 20


# --- Splits --------------------------------------------------------------------------------------


def test_data_sets_stay_together(rare):
    source = open_source(rare, classes=("er",), split=SplitConfig(validation_fraction=0.34))
    sides = {name: set(names) for name, names in source.info.specimens.items()}
    assert sides["train"] | sides["validation"] == {"jrc_0", "jrc_1", "jrc_2"}
    assert not sides["train"] & sides["validation"]
    assert source.info.warnings == ()


def test_a_class_in_one_data_set_alone_is_learnt_not_judged(rare):
    for seed in range(5):
        source = open_source(rare, classes=("er", "lyso"), split=SplitConfig(seed=seed))
        assert len(source.info.specimens["train"]) == 2


def test_patterns_choose_the_sides(rare):
    split = SplitConfig(validation=("jrc_1",), test=("*2",))
    source = open_source(rare, classes=("er",), split=split)
    assert source.info.specimens == {
        "train": ("jrc_0",), "validation": ("jrc_1",), "test": ("jrc_2",),
    }  # fmt: skip
    with pytest.raises(InputError, match=r"jrc_9.*only jrc_0"):
        open_source(rare, classes=("er",), split=SplitConfig(test=("jrc_9",)))
    with pytest.raises(InputError, match="both validation and test"):
        open_source(
            rare, split=SplitConfig(validation=("jrc_1",), test=("jrc_*",)), classes=("er",)
        )
    drawn = SplitConfig(validation_fraction=0.34, test_fraction=0.34)
    sizes = open_source(rare, classes=("er",), split=drawn).info.specimens
    assert {name: len(of) for name, of in sizes.items()} == {
        "train": 1, "validation": 1, "test": 1,
    }  # fmt: skip
    with pytest.raises(InputError, match="by=part"):
        open_source(rare, split=SplitConfig(by="part"), classes=("er",))


def test_one_data_set_is_split_by_crops_and_reported_as_leakage(mini):
    with pytest.raises(InputError, match="only data set") as caught:
        open_source(mini, spacing=MINI_NM, split=SplitConfig())
    assert "data.split.by=file" in (caught.value.hint or "")
    source = open_source(
        mini, spacing=MINI_NM, split=SplitConfig(by="file"), classes=("mito", "pm")
    )
    assert any(said.startswith("leakage: crops of jrc_vnc-a") for said in source.info.warnings)
    assert any(said.startswith("pm: annotated in none of the 1 crops that validate")
               for said in source.info.warnings)  # fmt: skip
    # The one crop with a plasma membrane has to be learnt from.
    assert "jrc_vnc-a/crop101" in source.info.specimens["train"]
    assert len(source.info.specimens["validation"]) == 1


# --- Normalisation -------------------------------------------------------------------------------


def test_eight_bits_are_scaled_by_fixed_numbers(root):
    source = open_source(root)
    assert source.info.normalisation == NormalisationDoc(kind="fixed", mean=127.5, std=63.75)
    (place,) = source._places["train"]
    view = source.view(place)
    raw = source._open(view.raw.path)[view.crop.slices()]
    sample = source.read(place, view.crop)
    np.testing.assert_allclose(sample.image[0], (raw - 127.5) / 63.75, atol=1e-6)
    with pytest.raises(InputError, match="kind=zscore") as caught:
        CellmapSource(CellmapConfig(root=str(root), split=EVERYTHING), task(), NormalisationDoc())
    assert "normalisation.kind=fixed" in (caught.value.hint or "")


def test_other_bits_need_numbers(tmp_path, write_pyramid):
    root = groups(tmp_path, write_pyramid)
    array = root / "jrc_a/jrc_a.zarr/recon-1/em/fibsem-uint8/s0/.zarray"
    document = json.loads(array.read_text())
    array.write_text(json.dumps({**document, "dtype": "<u2"}))
    with pytest.raises(InputError, match=r"<u2.*no usual range"):
        open_source(root, classes=("er",))


# --- What may be wrong ---------------------------------------------------------------------------


def test_classes_that_never_occur_are_refused_with_those_that_do(root, mini):
    with pytest.raises(InputError, match="nuc: annotated in none of the 3 crops") as caught:
        open_source(mini, classes=("mito", "nuc"), spacing=MINI_NM)
    assert "mito, perox, pm" in (caught.value.hint or "")
    with pytest.raises(InputError, match="none of er has a voxel"):
        open_source(root, classes=("er",))
    with pytest.raises(InputError, match="no CellMap class 'mitos'"):
        open_source(root, classes=("mitos",))
    with pytest.raises(InputError, match=r"data\.instances is empty"):
        open_source(root, kind="boundary", classes=("mito", "er"))
    with pytest.raises(InputError, match="ids of er are no objects"):
        open_source(root, kind="boundary", instances="er")


def test_nothing_there_is_refused(tmp_path, root):
    with pytest.raises(MissingPathError):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CellMap data"):
        open_source(tmp_path / "empty")
    with pytest.raises(InputError, match="holds no CellMap data that are wanted"):
        open_source(root, data_sets=("jrc_other*",))
    with pytest.raises(InputError, match="no crop below"):
        open_source(root, crops=("crop99",))


def test_a_crop_outside_the_raw_data_is_left_out(root, write_pyramid):
    crops = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth"
    ones = np.ones((4, 4, 4), np.uint8)
    write_pyramid(crops / "crop8" / "mito", [ones], spacing=(8.0,) * 3, origin=(900.0,) * 3)
    source = open_source(root)
    assert [p.name for p in source._places["train"]] == ["crop7"]
    assert any("crop8 lies outside" in said for said in source.info.warnings)
    with pytest.raises(InputError, match="crop8 lies outside"):
        open_source(root, crops=("crop8",))


def test_wrong_units_are_reported_by_file(root):
    place = root / "jrc_test/jrc_test.zarr/recon-1/labels/groundtruth/crop7/mito/.zattrs"
    place.write_text(place.read_text().replace("nanometer", "parsec"))
    with pytest.raises(InputError, match=r"crop7/mito gives lengths in 'parsec'"):
        open_source(root)


def test_a_corrupt_chunk_is_named(root):
    (root / "jrc_test/jrc_test.zarr/recon-1/em/fibsem-uint8/s0/1.1.1").write_bytes(b"no chunk")
    source = open_source(root)
    with pytest.raises(UnreadableFileError, match=r"chunk 1\.1\.1 of .*fibsem-uint8/s0"):
        patches(source, (8, 8, 8), 1)


def test_a_challenge_sized_root_opens_in_two_seconds(tmp_path, write_pyramid):
    """22 data sets, 289 crops of 10 classes: only small files are looked at."""
    template = tmp_path / "template"
    ones = np.ones((8, 8, 8), np.uint8)
    write_pyramid(template, [ones], spacing=(8.0,) * 3, origin=(32.0,) * 3)
    attributes = (template / ".zattrs").read_text()
    array = (template / "s0" / ".zarray").read_text()
    chunk = (template / "s0" / "0.0.0").read_bytes()
    names = ["mito", "er", "nuc", "golgi", "ves", "pm", "ecs", "cyto", "lyso", "ld"]
    root = tmp_path / "root"
    for i in range(289):
        data_set = f"jrc_{i % 22}"
        base = root / data_set / f"{data_set}.zarr" / "recon-1"
        if i < 22:
            raw = np.full((16, 16, 16), 99, np.uint8)
            write_pyramid(base / "em" / "fibsem-uint8", [raw], spacing=(8.0,) * 3)
        for name in names:
            folder = base / "labels" / "groundtruth" / f"crop{i}" / name
            (folder / "s0").mkdir(parents=True)
            (folder / ".zattrs").write_text(attributes)
            (folder / "s0" / ".zarray").write_text(array)
            (folder / "s0" / "0.0.0").write_bytes(chunk)
    began = time.perf_counter()
    source = open_source(root, classes=("mito", "er", "nuc", "golgi", "ves"), split=SplitConfig())
    took = time.perf_counter() - began
    assert sum(map(len, source.info.specimens.values())) == 22
    assert took < 15, took  # 1 s on a quiet machine
