"""Whole runs of a 2-D instance model on volumes: slices, hybrid, ortho, and what is refused."""

import numpy as np
import pytest

from lamella.core.errors import GeometryError, InputError, RunCancelledError
from lamella.core.progress import CancelToken
from lamella.volume import Volume
from lamella.wire.card import DecoderDoc
from lamella.wire.event import PreviewEvent, ProgressEvent
from lamella.wire.request import InputDoc, LinkingDoc, SegmentRequest, SizeDoc
from lamella.workflows.segment import RunOptions, segment

CENTERS = ((8, 14, 14), (8, 40, 40), (19, 16, 42))


def image(shape=(26, 56, 56), missing=()):
    """Three bright balls in faint noise, uint16; some slices are dark."""
    points = np.stack(np.indices(shape), -1)
    result = np.random.default_rng(1).normal(100, 2, shape)
    for center in CENTERS:
        result[((points - center) ** 2).sum(-1) < 6.5**2] += 100
    result[list(missing)] = np.random.default_rng(2).normal(100, 2, (len(missing), *shape[1:]))
    return Volume.from_array(result.astype(np.uint16), spacing=(1, 1, 1), unit="um", name="balls")


@pytest.fixture(scope="module")
def spots(tmp_path_factory, lamella_models):
    """A 2-D instance model: foreground where it is bright, a boundary nowhere."""
    weights = np.zeros((2, 1, 3, 3))
    weights[0] = 1.0
    return lamella_models.make_folder(
        tmp_path_factory.mktemp("spots"),
        axes="yx",
        tile=(32, 32),
        weights=weights,
        bias=(-12.0, -30.0),
        task="instance",
        id="spots",
        decoder=DecoderDoc(kind="boundary_watershed"),
    )


class Recording:
    def __init__(self, stop=lambda _event: False):
        self.events, self.token, self._stop = [], CancelToken(), stop

    def emit(self, event):
        self.events.append(event)
        if self._stop(event):
            self.token.cancel()

    def check(self):
        self.token.check()


def run(model, folder, volume=None, sink=None, **fields):
    volume = image() if volume is None else volume
    request = SegmentRequest(
        input=InputDoc(path="memory:balls"),
        model=str(model.path),
        options={"check": "never"},
        **fields,
    )
    return segment(request, RunOptions(run_dir=folder), volume=volume, sink=sink)


def objects_at_centers(run):
    labels = run.labels.load()
    return [int(labels[center]) for center in CENTERS]


def test_auto_links_slices(spots, tmp_path):
    done = run(spots, tmp_path / "run", image(missing=[8]))
    assert done.manifest.labels.n_objects == 3
    resolved = done.manifest.options_resolved
    assert resolved["strategy"] == "hybrid"
    assert resolved["linking"]["n_sections"] > 20
    assert resolved["linking"]["max_distance_z"] == 2
    assert "instances_per_slice" not in {w.code for w in done.manifest.warnings}
    table = done.objects
    assert sorted(table["n_slices"]) == [12, 12, 13]
    assert table["link_margin"].min() > 0.2
    assert (tmp_path / "run" / "engine.ome.zarr").exists()


def test_slices_that_are_no_volume_are_noticed(spots, tmp_path):
    rng = np.random.default_rng(5)
    pictures = np.full((12, 56, 56), 100, np.uint16)
    y, x = np.indices((56, 56))
    for picture in pictures:
        for cy, cx in rng.uniform(6, 50, (3, 2)):
            picture[(y - cy) ** 2 + (x - cx) ** 2 < 12] = 200
    album = Volume.from_array(pictures, spacing=(1, 1, 1), unit="um", name="balls")
    done = run(spots, tmp_path / "run", album)
    assert "few_links" in {w.code for w in done.manifest.warnings}
    volume = run(spots, tmp_path / "volume")
    assert "few_links" not in {w.code for w in volume.manifest.warnings}


def test_hybrid_again_gives_the_same_bits(spots, tmp_path):
    first = run(spots, tmp_path / "a", instances="hybrid", min_size=SizeDoc(value=200))
    second = run(spots, tmp_path / "b", instances="hybrid", min_size=SizeDoc(value=200))
    np.testing.assert_array_equal(first.labels.load(), second.labels.load())
    assert objects_at_centers(first) == [1, 2, 3]


def test_slices_leave_objects_as_they_are(spots, tmp_path):
    done = run(spots, tmp_path / "run", instances="slices")
    assert done.manifest.labels.n_objects > 20
    assert done.manifest.options_resolved["strategy"] == "slices"
    assert "instances_per_slice" in {w.code for w in done.manifest.warnings}


def test_linking_options_reach_the_rules(spots, tmp_path):
    linking = LinkingDoc(max_distance_z=1)
    done = run(spots, tmp_path / "run", image(missing=[8]), linking=linking)
    assert done.manifest.labels.n_objects == 5
    with pytest.raises(GeometryError):
        run(
            spots,
            tmp_path / "other",
            Volume.from_array(image().load()),
            linking=LinkingDoc(max_centroid_distance=SizeDoc(value=1, unit="um")),
        )


def test_holes_and_small_objects_after_linking(spots, tmp_path):
    done = run(spots, tmp_path / "run", fill_holes=True, min_size=SizeDoc(value=500))
    assert done.manifest.labels.n_objects == 3
    assert objects_at_centers(done) == [1, 2, 3]
    assert not (tmp_path / "run" / ".staged.ome.zarr").exists()


@pytest.mark.parametrize("stage", ["overlaps", "linking"])
def test_a_run_that_is_stopped_while_it_links_goes_on(spots, tmp_path, stage):
    whole = run(spots, tmp_path / "whole")
    sink = Recording(lambda event: isinstance(event, ProgressEvent) and event.stage == stage)
    with pytest.raises(RunCancelledError):
        run(spots, tmp_path / "run", sink=sink)
    sink = Recording()
    again = run(spots, tmp_path / "run", sink=sink)
    assert not any(isinstance(e, ProgressEvent) and e.stage == "tiles" for e in sink.events)
    np.testing.assert_array_equal(again.labels.load(), whole.labels.load())


# --- Three planes -------------------------------------------------------------------------------


def thick(step=2):
    return Volume.from_array(
        image().load()[::step], spacing=(step, 1, 1), unit="um", origin=(5, 0, 0), name="balls"
    )


def test_ortho_finds_objects_in_3d(spots, tmp_path):
    sink = Recording()
    done = run(spots, tmp_path / "run", thick(), sink, instances="ortho")
    labels = done.labels
    assert labels.same_grid(thick())
    ids = [int(labels.load()[z // 2, y, x]) for z, y, x in CENTERS]
    assert sorted(ids) == [1, 2, 3]
    assert done.manifest.labels.n_objects == 3
    resolved = done.manifest.options_resolved
    assert resolved["strategy"] == "ortho"
    assert resolved["isotropic_shape"] == [26, 56, 56]
    previews = [e for e in sink.events if isinstance(e, PreviewEvent)]
    assert [e.is_final for e in previews] == [False, True]
    assert (tmp_path / "run" / previews[0].path).is_dir()
    stages = {e.stage for e in sink.events if isinstance(e, ProgressEvent)}
    assert {"tiles along z", "tiles along y", "tiles along x"} <= stages
    assert not (tmp_path / "run" / "parts").exists()


def test_ortho_goes_on_where_it_was_stopped(spots, tmp_path):
    whole = run(spots, tmp_path / "whole", thick(), instances="ortho")

    def stop(event):
        return isinstance(event, ProgressEvent) and event.stage == "tiles along x"

    with pytest.raises(RunCancelledError):
        run(spots, tmp_path / "run", thick(), Recording(stop), instances="ortho")
    assert (tmp_path / "run/parts/plane-z/part.json").exists()
    sink = Recording()
    again = run(spots, tmp_path / "run", thick(), sink, instances="ortho")
    stages = {e.stage for e in sink.events if isinstance(e, ProgressEvent)}
    assert "tiles along z" not in stages
    np.testing.assert_array_equal(again.labels.load(), whole.labels.load())


def test_ortho_that_does_not_fit_is_refused_before_it_begins(spots, tmp_path, monkeypatch):
    from lamella.engines.lamella import ortho

    monkeypatch.setattr(ortho, "available_bytes", lambda: 10**6)
    with pytest.raises(InputError, match=r"isotropic \(26 x 56 x 56 voxels\)") as caught:
        run(spots, tmp_path / "run", thick(), instances="ortho")
    assert "hybrid" in caught.value.hint


# --- Refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("instances", ["slices", "hybrid", "ortho"])
def test_a_single_image_has_no_slices(spots, tmp_path, instances):
    picture = Volume.from_array(image().load()[8], spacing=(1, 1), unit="um")
    with pytest.raises(InputError, match="single image"):
        run(spots, tmp_path / "run", picture, instances=instances)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("instances", ["slices", "hybrid", "ortho", "volumetric"])
def test_a_model_of_classes_makes_no_objects(model_path, tmp_path, instances):
    from lamella.models.folder import ModelFolder

    with pytest.raises(InputError, match="gives classes"):
        run(ModelFolder.open(model_path), tmp_path / "run", instances=instances)


def test_volumetric_needs_a_3d_model(spots, tmp_path):
    with pytest.raises(InputError, match="needs a 3-D model"):
        run(spots, tmp_path / "run", instances="volumetric")


@pytest.mark.parametrize("instances", ["slices", "hybrid", "ortho"])
def test_planes_need_a_2d_model(lamella_models, tmp_path, instances):
    model = lamella_models.make_folder(
        tmp_path / "solid",
        weights=np.ones((2, 1, 1, 1, 1)),
        task="instance",
        decoder=DecoderDoc(kind="boundary_watershed"),
    )
    with pytest.raises(InputError, match="needs a 2-D model"):
        run(model, tmp_path / "run", instances=instances)


def test_engines_without_instances_of_slices_say_so(tmp_path):
    request = SegmentRequest(
        input=InputDoc(path="memory:balls"), model="classical:otsu", instances="hybrid"
    )
    with pytest.raises(InputError, match="'classical' cannot do --instances hybrid"):
        segment(request, RunOptions(run_dir=tmp_path / "run"), volume=image())
