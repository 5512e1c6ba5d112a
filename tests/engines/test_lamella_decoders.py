"""Networks that give affinities or flows: objects in 3-D, and cards that cannot be right."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import InputError, ModelError
from lamella.engines.engine import EngineJob
from lamella.engines.lamella import strategy
from lamella.engines.lamella.engine import LamellaEngine
from lamella.testing.engine import RecordingSink
from lamella.volume import Volume
from lamella.wire.card import DecoderDoc
from lamella.wire.request import InputDoc, SegmentRequest, SpacingDoc

sys.path.insert(0, str(Path(__file__).parent))
from lamella_models import make_folder

sys.path.pop(0)

CENTERS = ((9, 10, 10), (9, 10, 27), (9, 27, 18))


def hills(shape=(18, 38, 38)):
    """Three round hills, float32."""
    points = np.stack(np.indices(shape), -1)
    image = np.zeros(shape, np.float32)
    for center in CENTERS:
        far = ((points - center) ** 2).sum(-1)
        image = np.maximum(image, 10 * np.exp(-far / 32).astype(np.float32))
    return Volume.from_array(image, spacing=(1, 1, 1), unit="um")


def run(model, folder, volume=None, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    request = SegmentRequest(
        input=InputDoc(path="hills"), model=model.card.id, options={"check": "never"}, **fields
    )
    return LamellaEngine().segment(
        EngineJob(volume or hills(), request, model, folder), RecordingSink()
    )


def slope_weights(n):
    """Foreground where it is bright, and the slope along each of n axes: (1 + n, 1, 3, …)."""
    weights = np.zeros((1 + n, 1) + (3,) * n)
    weights[(0, 0) + (1,) * n] = 8.0
    for axis in range(n):
        for step, sign in ((0, -1.5), (2, 1.5)):
            at = [1] * n
            at[axis] = step
            weights[(1 + axis, 0, *at)] = sign
    return weights


def flows(folder, axes="zyx", **card):
    n = len(axes)
    fields = {
        "axes": axes,
        "tile": (16,) * n,
        "weights": slope_weights(n),
        "bias": (-6.0,) + (0.5,) * n,
        "task": "instance",
        "decoder": DecoderDoc(kind="flows", parameters={"min_size": 20}),
    }
    return make_folder(folder, **{**fields, **card})


def affinities(folder, offsets=((-1, 0, 0), (0, -1, 0), (0, 0, -1)), **card):
    n = len(offsets)
    weights = np.zeros((1 + n, 1, 3, 3, 3))
    weights[:, 0, 1, 1, 1] = 8.0
    fields = {
        "weights": weights,
        "bias": (-6.0,) * (1 + n),
        "task": "instance",
        "decoder": DecoderDoc(
            kind="affinities", parameters={"offsets": [list(o) for o in offsets]}
        ),
    }
    return make_folder(folder, **{**fields, **card})


def ids_at_centers(result):
    labels = result.labels.load()
    return sorted(int(labels[c[-labels.ndim :]]) for c in CENTERS)


@pytest.mark.parametrize("make", [flows, affinities])
def test_objects_in_3d(make, tmp_path):
    result = run(make(tmp_path / "model"), tmp_path / "run", instances="volumetric")
    assert result.labels.is_instance
    assert not result.is_per_slice
    assert result.labels.load().max() == 3
    assert ids_at_centers(result) == [1, 2, 3]
    assert result.options_resolved["strategy"] == "volumetric"


def test_long_offsets_use_the_mutex_watershed(tmp_path):
    offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -6), (0, -6, 0))
    model = affinities(tmp_path / "model", offsets)
    assert ids_at_centers(run(model, tmp_path / "run")) == [1, 2, 3]


def test_flows_of_slices_stay_in_their_slice(tmp_path):
    result = run(flows(tmp_path / "model", "yx"), tmp_path / "run")
    assert result.is_per_slice
    labels = result.labels.load()
    assert not set(np.unique(labels[8])) & set(np.unique(labels[9])) - {0}
    assert ids_at_centers(result) == sorted(set(ids_at_centers(result)))


def test_flows_are_brought_to_the_grid_of_the_input(tmp_path):
    model = flows(tmp_path / "model", spacing=SpacingDoc(values=(1, 1, 1), unit="um"))
    thick = Volume.from_array(hills().load()[::2], spacing=(2, 1, 1), unit="um")
    result = run(model, tmp_path / "run", thick)
    labels = result.labels.load()
    assert labels.shape == thick.shape
    assert sorted(int(labels[z // 2, y, x]) for z, y, x in CENTERS) == [1, 2, 3]


def test_affinities_on_another_grid_are_refused(tmp_path):
    model = affinities(tmp_path / "model", spacing=SpacingDoc(values=(1, 1, 1), unit="um"))
    thick = Volume.from_array(hills().load()[::2], spacing=(2, 1, 1), unit="um")
    with pytest.raises(InputError, match="9 x 38 x 38 voxels would be resampled to 18 x 38 x 38"):
        run(model, tmp_path / "run", thick)


@pytest.mark.parametrize("make", [flows, affinities])
def test_a_mirror_turns_directions_around(make, tmp_path):
    with pytest.raises(InputError, match="a mirror turns around"):
        run(make(tmp_path / "model"), tmp_path / "run", tta=True)


def test_ortho_is_not_for_flows(tmp_path):
    with pytest.raises(InputError, match="depend on the plane"):
        run(flows(tmp_path / "model", "yx"), tmp_path / "run", instances="ortho")


def test_confidence_comes_from_the_foreground(tmp_path):
    result = run(affinities(tmp_path / "model"), tmp_path / "run", confidence=True)
    assert result.confidence is not None
    assert ids_at_centers(result) == [1, 2, 3]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"decoder": DecoderDoc(kind="flows", parameters={"speed": 2})}, "unknown parameters"),
        ({"decoder": DecoderDoc(kind="flows", parameters={"n_steps": 0})}, "cannot be used"),
        ({"decoder": DecoderDoc(kind="boundary_watershed")}, "reads 2 outputs"),
        (
            {"decoder": DecoderDoc(kind="affinities", parameters={"offsets": [[-1, 0], [0, -1]]})},
            "do not fit its axes",
        ),
    ],
)
def test_cards_that_cannot_be_right(tmp_path, card, message):
    with pytest.raises(ModelError, match=message):
        run(flows(tmp_path / "model", **card), tmp_path / "run")


def test_a_volume_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(strategy, "available_bytes", lambda: 10**5)
    with pytest.raises(InputError, match="at once needs about"):
        run(flows(tmp_path / "model"), tmp_path / "run")
