"""The engine for MONAI bundles: the contract, MONAI's own run as judge, trust, interruptions."""

import shutil
import warnings
import zipfile

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal

from lamella.core.errors import (
    AxesError,
    DeviceMemoryError,
    EngineError,
    InputError,
    ModelError,
    RunCancelledError,
)
from lamella.core.places import Places
from lamella.engines.engine import EngineJob
from lamella.engines.monai import opening
from lamella.engines.monai.engine import MonaiEngine
from lamella.engines.monai.models import find_model
from lamella.io.format import open_labels, open_volume
from lamella.testing.engine import EngineContract, RecordingSink
from lamella.volume import Volume
from lamella.wire.event import LogEvent, PreviewEvent, ProgressEvent
from lamella.wire.request import InputDoc, SegmentRequest

pytest.importorskip("monai")


def segment(volume, bundle, run_dir, *, resume=False, sink=None, is_trusted=False, **fields):
    run_dir.mkdir(parents=True, exist_ok=True)
    request = SegmentRequest(input=InputDoc(path="image"), model=f"monai:{bundle}", **fields)
    model = find_model(str(bundle), Places())
    job = EngineJob(volume, request, model, run_dir, resume, is_trusted=is_trusted)
    return MonaiEngine().segment(job, sink or RecordingSink())


@pytest.fixture(scope="module")
def plain(kit, weights, tmp_path_factory):
    """A bundle that works on the image's own grid."""
    return kit.write_bundle(tmp_path_factory.mktemp("bundles") / "balls", weights)


@pytest.fixture(scope="module")
def spaced(kit, weights, tmp_path_factory):
    """A bundle with an orientation and a spacing of its own."""
    config = kit.inference(preprocessing=kit.image_transforms(ORIENT, SPACE, SCORE))
    return kit.write_bundle(tmp_path_factory.mktemp("bundles") / "spaced", weights, config=config)


ORIENT = {"_target_": "Orientationd", "axcodes": "RAS"}
SPACE = {"_target_": "Spacingd", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"}
SCORE = {"_target_": "NormalizeIntensityd"}


class TestContract(EngineContract):
    engine_id = "monai"

    @pytest.fixture(autouse=True)
    def _bundle(self, plain):
        self.bundle = plain

    def make_request(self):
        return SegmentRequest(input=InputDoc(path="image"), model=f"monai:{self.bundle}")

    def make_model(self):
        return find_model(str(self.bundle), Places())

    def make_empty_volume(self):
        return None

    def test_several_channels_are_refused_or_expected(self, tmp_path):
        volume = self.make_volume()
        several = Volume.from_array(np.stack([volume.load()] * 3), axes="czyx")
        with pytest.raises(AxesError) as caught:
            self.run(tmp_path, volume=several)
        assert caught.value.hint


def ranged(low, high):
    return {
        "_target_": "ScaleIntensityRanged",
        "a_min": low, "a_max": high, "b_min": -1.0, "b_max": 3.0, "clip": True,
    }  # fmt: skip


WAYS = {
    "own grid": ([SCORE], None, None),
    "spacing, probabilities back": ([ORIENT, SPACE, SCORE], None, None),
    "finer, gaussian, other tile": (
        [
            {"_target_": "Orientationd", "axcodes": "LPS"},
            {"_target_": "Spacingd", "pixdim": [1.0, 1.0, 1.0]},
            ranged(80, 170),
        ],
        {
            "_target_": "SlidingWindowInferer",
            "roi_size": [24, 16, 20],
            "overlap": 0.25,
            "mode": "gaussian",
        },
        None,
    ),
    "labels back by the nearest": (
        [ORIENT, SPACE, {"_target_": "NormalizeIntensityd", "nonzero": True}],
        None,
        ["softmax", "argmax", "nearest"],
    ),
    "cropped, then spaced": (
        [
            {**ranged(110, 170), "b_min": 0.0},
            {"_target_": "CropForegroundd", "source_key": "image"},
            SPACE,
        ],
        None,
        None,
    ),
    "percentiles, whole image at once": (
        [
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "lower": 1,
                "upper": 99.5,
                "b_min": -1,
                "b_max": 3,
                "clip": True,
            },
        ],
        {"_target_": "SimpleInferer"},
        ["softmax", "argmax", "largest"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turned", ["lps", "swapped"])
def test_labels_are_those_of_monais_own_run(kit, weights, images, tmp_path, way, turned):
    if (list(WAYS).index(way) + list(images).index(turned)) % 2 and way != "cropped, then spaced":
        pytest.skip("every way once, the orientations in turn")
    steps, inferer, after = WAYS[way]
    words = {
        "softmax": kit.SOFTMAX,
        "argmax": kit.ARGMAX,
        "nearest": kit.invert(nearest=True),
        "largest": {"_target_": "KeepLargestConnectedComponentd", "applied_labels": [1]},
    }
    changes = {"preprocessing": kit.image_transforms(*steps)}
    if inferer is not None:
        changes["inferer"] = inferer
    if after is not None:
        changes["postprocessing"] = kit.output_transforms(*(words[name] for name in after))
    bundle = kit.write_bundle(tmp_path / "bundle", weights, config=kit.inference(**changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.squeeze(kit.run_monai(bundle, images[turned], tmp_path / "monai")).T
    result = segment(open_volume(images[turned]), bundle, tmp_path / "run", confidence=True)
    labels = result.labels.load()
    assert 0.01 < (expected > 0).mean() < 0.2
    assert (labels == expected).mean() >= 0.9999
    assert result.labels.classes[0].name == "ball"
    maps = zarr.open_array(str(tmp_path / "run" / "confidence.zarr"), mode="r")[:]
    assert maps.shape == (3, *labels.shape)
    inside = labels > 0
    assert maps[0][inside].min() >= 126, "the probability of what was chosen"


class TestSpaced:
    def test_confidence_changes_no_label(self, spaced, images, tmp_path):
        volume = open_volume(images["swapped"])
        off = segment(volume, spaced, tmp_path / "off", tta=True)
        on = segment(volume, spaced, tmp_path / "on", tta=True, confidence=True)
        assert_array_equal(off.labels.load(), on.labels.load())
        assert off.confidence is None
        assert on.confidence.measures == ("probability", "margin", "entropy", "tta_spread")

    def test_columns_leave_no_seam(self, spaced, tmp_path, balls):
        data = np.tile(balls, (1, 4, 4))[:, :150, :140]
        wide = Volume.from_array(data, spacing=(2.0, 1.0, 1.0), unit="mm")
        whole = segment(wide, spaced, tmp_path / "whole", preview=False)
        options = {"band_mb": 1}
        cut = segment(wide, spaced, tmp_path / "cut", preview=False, options=options)
        assert whole.options_resolved["columns"] == 1
        assert cut.options_resolved["columns"] > 1
        assert_array_equal(whole.labels.load(), cut.labels.load())

    def test_an_interrupted_run_goes_on_to_the_same_bits(self, spaced, tmp_path, balls):
        data = np.tile(balls, (3, 1, 1))[:, :24, :24]
        tall = Volume.from_array(data, spacing=(2.0, 1.0, 1.0), unit="mm")
        whole = segment(tall, spaced, tmp_path / "whole", confidence=True)

        class StopsHalfway(RecordingSink):
            def emit(self, event, /):
                super().emit(event)
                is_tile = isinstance(event, ProgressEvent) and event.stage == "tiles"
                if is_tile and event.done > 0.7 * event.total:
                    raise RunCancelledError("stopped")

        with pytest.raises(RunCancelledError):
            segment(tall, spaced, tmp_path / "parts", sink=StopsHalfway(), confidence=True)
        sink = RecordingSink()
        again = segment(tall, spaced, tmp_path / "parts", resume=True, sink=sink, confidence=True)
        messages = [event.message for event in sink.events if isinstance(event, LogEvent)]
        assert any("layers are on disk already" in message for message in messages)
        assert_array_equal(whole.labels.load(), again.labels.load())
        first, second = (
            zarr.open_array(str(tmp_path / name / "confidence.zarr"), mode="r")[:]
            for name in ("whole", "parts")
        )
        assert_array_equal(first, second)

    def test_the_preview_shows_the_objects_where_they_are(self, spaced, images, tmp_path):
        sink = RecordingSink()
        volume = open_volume(images["swapped"])
        result = segment(volume, spaced, tmp_path, sink=sink)
        (event,) = [e for e in sink.events if isinstance(e, PreviewEvent) and not e.is_final]
        preview = open_labels(tmp_path / event.path)
        labels = result.labels.load()
        index = [
            np.minimum((np.arange(n) / f).astype(int), m - 1)
            for n, f, m in zip(labels.shape, event.factors, preview.shape, strict=True)
        ]
        shown = preview.load()[np.ix_(*index)]
        both = ((shown > 0) & (labels > 0)).sum()
        assert 2 * both / ((shown > 0).sum() + (labels > 0).sum()) > 0.5

    def test_no_spacing_is_told_and_taken_as_it_is(self, spaced, balls, tmp_path):
        result = segment(Volume.from_array(balls), spaced, tmp_path)
        assert {"spacing_unknown", "orientation_unknown"} <= {n.code for n in result.warnings}
        assert result.labels.load()[8, 12, 10] == 1


class TestOtherNetworks:
    def test_slices_and_images_by_a_2d_bundle(self, kit, balls, tmp_path):
        definition = {**kit.NETWORK, "spatial_dims": 2}
        state = kit.train(kit.build(definition), n_axes=2, steps=30)
        config = kit.inference(
            network_def=definition,
            inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 16], "overlap": 0.25},
        )
        meta = kit.metadata()
        meta["network_data_format"]["inputs"]["image"]["spatial_shape"] = ["2*n", "2*n"]
        bundle = kit.write_bundle(tmp_path / "flat", state, config=config, meta=meta)
        stack = segment(Volume.from_array(balls), bundle, tmp_path / "stack").labels.load()
        slice_ = Volume.from_array(balls[8], axes="yx")
        image = segment(slice_, bundle, tmp_path / "image").labels.load()
        assert image[12, 10] == 1
        assert_array_equal(stack[8], image)

    def test_channels_decided_one_by_one(self, kit, images, tmp_path):
        definition = {**kit.NETWORK, "out_channels": 3}
        state = kit.train(kit.build(definition), is_sigmoid=True, steps=20)
        after = kit.output_transforms(kit.SIGMOID, kit.invert(), kit.THRESHOLD)
        config = kit.inference(
            network_def=definition,
            preprocessing=kit.image_transforms(ORIENT, SPACE, SCORE),
            postprocessing=after,
        )
        meta = kit.metadata()
        meta["network_data_format"]["outputs"]["pred"] = {
            "num_channels": 3,
            "channel_def": {"0": "background", "1": "core", "2": "whole"},
        }
        bundle = kit.write_bundle(tmp_path / "two", state, config=config, meta=meta)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = kit.run_monai(bundle, images["lps"], tmp_path / "monai")
        result = segment(open_volume(images["lps"]), bundle, tmp_path / "run", confidence=True)
        assert "overlapping_classes" in {note.code for note in result.warnings}
        assert [known.name for known in result.labels.classes] == ["core", "whole"]
        # MONAI saves one mask a channel; a voxel is labelled where any but background is set.
        masks = np.squeeze(expected)
        channel = next(axis for axis in range(4) if masks.shape[axis] == 3)
        some = np.moveaxis(masks, channel, 0)[1:].any(axis=0).T
        assert ((result.labels.load() > 0) == some).mean() >= 0.9999


class TestTrust:
    def test_transforms_beyond_the_list_run_as_monai_runs_them(
        self, kit, weights, images, tmp_path
    ):
        config = kit.inference(
            preprocessing=kit.image_transforms(
                ORIENT,
                {**SPACE, "pixdim": [1.4, 1.5, 1.6]},
                SCORE,
                {"_target_": "GaussianSmoothd", "sigma": 0.4},
            )
        )
        bundle = kit.write_bundle(tmp_path / "smooth", weights, config=config)
        volume = open_volume(images["swapped"])
        with pytest.raises(ModelError, match="GaussianSmoothd") as caught:
            segment(volume, bundle, tmp_path / "refused")
        assert "--trust" in caught.value.hint
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.squeeze(kit.run_monai(bundle, images["swapped"], tmp_path / "monai")).T
            result = segment(volume, bundle, tmp_path / "run", is_trusted=True)
        assert (result.labels.load() == expected).mean() >= 0.9999
        assert "whole_volume" in {note.code for note in result.warnings}

    def test_a_network_in_the_bundles_own_code(self, kit, weights, balls, tmp_path):
        config = kit.inference(network_def={"_target_": "scripts.net.Mine"})
        bundle = kit.write_bundle(tmp_path / "own", weights, config=config)
        arguments = {name: v for name, v in kit.NETWORK.items() if name != "_target_"}
        (bundle / "scripts").mkdir()
        (bundle / "scripts" / "__init__.py").write_text("")
        (bundle / "scripts" / "net.py").write_text(
            "from monai.networks.nets import UNet\n"
            "from pathlib import Path\n"
            "Path(__file__ + '.ran').write_text('ran')\n"
            "class Mine(UNet):\n"
            "    def __init__(self):\n"
            f"        super().__init__(**{arguments})\n"
        )
        proof = bundle / "scripts" / "net.py.ran"
        with pytest.raises(ModelError, match="no class of MONAI"):
            segment(Volume.from_array(balls), bundle, tmp_path / "refused")
        assert not proof.exists(), "its code ran without trust"
        result = segment(Volume.from_array(balls), bundle, tmp_path / "run", is_trusted=True)
        assert proof.exists()
        assert result.labels.load()[8, 12, 10] == 1

    def test_pickled_weights_load_only_with_trust(self, kit, weights, balls, tmp_path):
        import torch

        bundle = kit.write_bundle(tmp_path / "pickled", weights)
        network = kit.build(kit.NETWORK)
        network.load_state_dict(weights)
        torch.save(network, bundle / "models" / "model.pt")
        with pytest.raises(ModelError, match="pickled objects") as caught:
            segment(Volume.from_array(balls), bundle, tmp_path / "refused")
        assert "--trust" in caught.value.hint
        result = segment(Volume.from_array(balls), bundle, tmp_path / "run", is_trusted=True)
        assert result.labels.load()[8, 12, 10] == 1

    def test_trusted_code_that_fails_is_one_clear_error(self, kit, weights, balls, tmp_path):
        config = kit.inference(network_def="$1 / 0")
        bundle = kit.write_bundle(tmp_path / "broken", weights, config=config)
        with pytest.raises(EngineError, match="bundle's own code failed"):
            segment(Volume.from_array(balls), bundle, tmp_path / "run", is_trusted=True)


class TestBadInput:
    def test_truncated_weights(self, kit, weights, balls, tmp_path):
        bundle = kit.write_bundle(tmp_path / "cut", weights)
        path = bundle / "models" / "model.pt"
        path.write_bytes(path.read_bytes()[:-900])
        with pytest.raises(ModelError, match="is damaged") as caught:
            segment(Volume.from_array(balls), bundle, tmp_path / "run")
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
            (b"garbage", "is damaged"),
            (b"", "is damaged"),
        ],
    )
    def test_files_that_are_no_weights(self, kit, balls, tmp_path, content, words):
        bundle = kit.write_bundle(tmp_path / "bad", content)
        with pytest.raises(ModelError, match=words):
            segment(Volume.from_array(balls), bundle, tmp_path / "run")

    def test_weights_of_another_network(self, kit, weights, balls, tmp_path):
        name = next(iter(weights))
        wrong = {**weights, "extra.weight": weights[name]}
        del wrong[name]
        bundle = kit.write_bundle(tmp_path / "other", {"state_dict": wrong})
        with pytest.raises(ModelError, match=r"extra\.weight") as caught:
            segment(Volume.from_array(balls), bundle, tmp_path / "run")
        assert caught.value.details["missing"] == [name]

    def test_weights_in_a_wrapper_from_several_devices(self, kit, weights, balls, tmp_path):
        wrapped = {"model": {f"module.{name}": value for name, value in weights.items()}}
        bundle = kit.write_bundle(tmp_path / "wrapped", wrapped)
        result = segment(Volume.from_array(balls), bundle, tmp_path / "run")
        assert result.labels.load()[8, 12, 10] == 1

    def test_network_arguments_that_make_none(self, kit, weights, balls, tmp_path):
        config = kit.inference(network_def={**kit.NETWORK, "strides": []})
        bundle = kit.write_bundle(tmp_path / "args", weights, config=config)
        with pytest.raises(ModelError):
            segment(Volume.from_array(balls), bundle, tmp_path / "run")
        config = kit.inference(network_def={**kit.NETWORK, "no_such_argument": 1})
        bundle = kit.write_bundle(tmp_path / "unknown", weights, config=config)
        with pytest.raises(ModelError, match="cannot build"):
            segment(Volume.from_array(balls), bundle, tmp_path / "run")

    def test_tiles_the_network_cannot_halve(self, plain, balls, tmp_path):
        with pytest.raises(InputError, match="multiple") as caught:
            segment(Volume.from_array(balls), plain, tmp_path, tile=(15, 16, 16))
        assert "--tile 16,16,16" in caught.value.hint

    def test_a_constant_and_a_broken_image(self, plain, balls, tmp_path):
        with pytest.raises(InputError, match="nothing to segment"):
            segment(Volume.from_array(np.ones_like(balls)), plain, tmp_path / "flat")
        bad = balls.copy()
        bad[0, 0, 0] = np.nan
        with pytest.raises(InputError, match="NaN") as caught:
            segment(Volume.from_array(bad), plain, tmp_path / "nan")
        assert "replace_not_finite" in caught.value.hint
        options = {"replace_not_finite": True}
        result = segment(Volume.from_array(bad), plain, tmp_path / "mended", options=options)
        assert "not_finite_replaced" in {note.code for note in result.warnings}

    def test_a_zip_is_run_as_its_folder(self, plain, balls, tmp_path):
        archive = tmp_path / "balls.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(plain.rglob("*")):
                file.write(path, f"balls/{path.relative_to(plain)}")
        volume = Volume.from_array(balls)
        folder = segment(volume, plain, tmp_path / "a", preview=False).labels.load()
        zipped = segment(volume, archive, tmp_path / "b", preview=False).labels.load()
        assert_array_equal(folder, zipped)


def test_too_little_device_memory_means_smaller_tiles_once(plain, balls, tmp_path, monkeypatch):
    real = opening._open_openvino

    def small(network, shape, *rest):
        if max(shape) > 16:
            raise DeviceMemoryError("cuda:0 has too little memory", hint="smaller --tile")
        return real(network, shape, *rest)

    monkeypatch.setattr(opening, "_open_openvino", small)
    result = segment(Volume.from_array(balls), plain, tmp_path, tile=(32, 32, 32))
    assert result.options_resolved["tile"] == [16, 16, 16]
    assert "smaller_tile" in {note.code for note in result.warnings}


def test_a_whole_run_by_name(plain, images, tmp_path):
    import lamella

    run = lamella.segment(
        images["lps"], model=f"monai:{plain}", run_dir=tmp_path / "run", confidence=True
    )
    assert run.manifest.status == "finished"
    assert run.manifest.model.engine == "monai"
    assert run.manifest.model.sha256
    assert run.manifest.labels.n_objects >= 3
    assert "confidence_margin" in run.objects.columns
    again = lamella.segment(
        images["lps"], model=f"monai:{plain}", run_dir=tmp_path / "run", confidence=True
    )
    assert again.was_finished
    shutil.rmtree(tmp_path / "run")
