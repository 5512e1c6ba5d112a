"""Targets of objects: perfect outputs decode to the objects, and nothing unknown is learnt."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.evaluation import count_overlaps
from lamella.evaluation.instance import score_instances
from lamella.inference.decode import Foreground
from lamella.inference.instance_maps import decode_maps, decoder_options, linear_outputs
from lamella.training.augment import Sample
from lamella.training.configuration import ClassConfig, TaskConfig
from lamella.training.losses import build_loss
from lamella.training.metrics import ConfusionCounts
from lamella.training.task import build_task
from lamella.training.tasks.affinities import default_offsets

KINDS = ("boundary", "distance", "affinities", "flows")
SEEDS = st.integers(0, 2**32 - 1)


def task_of(kind, axes="yx", spacing=None, **fields):
    config = TaskConfig(kind=kind, classes=(ClassConfig(name="cell"),), **fields)
    return build_task(config, axes, spacing=spacing)


def sample_of(ids, known=None):
    image = np.zeros((1, *ids.shape), np.float32)
    valid = np.ones(ids.shape, bool) if known is None else known
    return Sample(image, ids[None], valid[None])


def ellipsoids(seed, shape, spacing=None, n=30):
    """Ellipsoids in physical space, many of which touch, none at the border."""
    rng = np.random.default_rng(seed)
    sizes = np.array(spacing or (1.0,) * len(shape))
    points = np.stack(np.indices(shape), -1) * sizes
    ids = np.zeros(shape, np.int64)
    for number in range(1, n + 1):
        half = rng.uniform(3.5, 7, len(shape)) * sizes.max() ** 0.5
        reach = np.array(shape) * sizes - half - sizes
        if (reach <= half).any():
            continue
        inside = (((points - rng.uniform(half, reach)) / half) ** 2).sum(-1) <= 1
        if not ids[inside].any():
            ids[inside] = number * 1000
    return ids


def packed(seed, shape, pitch=12):
    """Cells without gaps (Voronoi), each whole and at least six voxels thick; background around."""
    import cc3d
    import edt

    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(pitch / 2, n, pitch) for n in shape), indexing="ij"))
    centers = grid.reshape(len(shape), -1).T
    centers = centers + rng.uniform(-2.5, 2.5, centers.shape)
    points = np.stack(np.indices(shape), -1)
    far = ((points[..., None, :] - centers) ** 2).sum(-1)
    ids = np.pad(far.argmin(-1) + 1, 1)
    pieces = cc3d.connected_components(ids, connectivity=2 * len(shape))
    sizes = np.bincount(pieces.ravel())
    largest = np.zeros(len(centers) + 1, np.int64)
    np.maximum.at(largest, ids.ravel(), sizes[pieces].ravel())
    ids[sizes[pieces] < largest[ids]] = 0
    depth = edt.edt(ids.astype(np.uint32), black_border=True)
    deepest = np.zeros(len(centers) + 1)
    np.maximum.at(deepest, ids.ravel(), depth.ravel())
    return np.where(deepest[ids] > 3, ids, 0)


def outputs_of(task, values):
    """What a network gives that is right everywhere."""
    linear = linear_outputs(task.decoder, task.n_outputs)
    return np.stack(
        [v if c in linear else np.where(v > 0.5, 9.0, -9.0) for c, v in enumerate(values)]
    ).astype(np.float32)


def decoded(task, outputs, spacing):
    """As the engine does it: probabilities in bytes, then objects."""
    decoder = Foreground(task.n_outputs, linear=linear_outputs(task.decoder, task.n_outputs))
    maps = np.empty(outputs.shape, np.uint8)
    planes = outputs if outputs.ndim == 4 else outputs[:, None]
    maps_of_planes = maps if outputs.ndim == 4 else maps[:, None]
    weight = np.ones(planes.shape[2:], np.float32)
    for z in range(planes.shape[1]):
        labels = np.empty(weight.shape, np.uint8)
        decoder.decode(planes[:, z], weight, labels, maps_of_planes[:, z])
    return decode_maps(maps, task.decoder.kind, spacing, decoder_options(task.decoder))


def precision(found, ids, iou=0.75):
    scores = score_instances(count_overlaps(found, ids), thresholds=(iou,))
    return scores.matchings[0].average_precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (ellipsoids, (64, 64)),
        (ellipsoids, (24, 36, 40)),
        (packed, (48, 60)),
        (packed, (24, 36, 36)),
    ],
    ids=["touching 2-D", "touching 3-D", "packed 2-D", "packed 3-D"],
)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_perfect_outputs_decode_to_the_objects(kind, make, shape, seed):
    ids = make(seed, shape)
    task = task_of(kind, "zyx"[3 - len(shape) :])
    outputs = outputs_of(task, task.encode(sample_of(ids)).values)
    # A sharp corner of a cell may be cut off from its core by boundary, or hang on it by a corner
    # only; to the decoder it is an object of its own.
    least = 0.85 if kind in ("boundary", "distance") and make is packed else 1.0
    assert precision(decoded(task, outputs, (1.0,) * len(shape)), ids) >= least


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_of_coarse_stacks_too(kind, seed):
    spacing = (4.0, 1.0, 1.0)
    ids = ellipsoids(seed, (24, 60, 60), spacing, n=12)
    task = task_of(kind, "zyx", spacing)
    outputs = outputs_of(task, task.encode(sample_of(ids)).values)
    assert precision(decoded(task, outputs, spacing), ids) == 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 44), (18, 30, 30)])
@settings(max_examples=10)
@given(seed=SEEDS)
def test_what_is_valid_does_not_depend_on_what_is_outside_the_patch(kind, shape, seed):
    rng = np.random.default_rng(seed)
    whole = packed(seed, tuple(n + 16 for n in shape))
    whole[rng.random(whole.shape) < 0.02] = 0
    low = [int(rng.integers(2, 14)) for _ in shape]
    window = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
    task = task_of(kind, "zyx"[3 - len(shape) :])
    of_patch = task.encode(sample_of(whole[window]))
    of_whole = task.encode(sample_of(whole))
    there = of_patch.valid
    assert of_whole.valid[(slice(None), *window)][there].all()
    np.testing.assert_array_equal(
        of_patch.values[there], of_whole.values[(slice(None), *window)][there]
    )
    assert there[0].all()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(seed=SEEDS)
def test_what_is_valid_does_not_depend_on_unknown_voxels(kind, seed):
    rng = np.random.default_rng(seed)
    ids = packed(seed, (40, 48))
    known = np.ones(ids.shape, bool)
    y, x = rng.integers(0, 30, 2)
    known[y : y + 9, x : x + 9] = False
    known[rng.random(ids.shape) < 0.002] = False
    task = task_of(kind)
    other = np.where(known, ids, rng.integers(0, 3, ids.shape) * 1000)
    first, second = (task.encode(sample_of(labels, known)) for labels in (ids, other))
    np.testing.assert_array_equal(first.valid, second.valid)
    np.testing.assert_array_equal(first.values[first.valid], second.values[first.valid])
    assert not first.valid[:, ~known].any()
    full = task.encode(sample_of(ids))
    np.testing.assert_array_equal(first.values[first.valid], full.values[first.valid])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_mean_nothing_but_sameness(kind):
    ids = packed(0, (40, 40))
    renamed = np.where(ids > 0, ids * 2**40 + 7, 0)
    first, second = (task_of(kind).encode(sample_of(labels)) for labels in (ids, renamed))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.valid, second.valid)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0, 5])
def test_patches_of_one_thing(kind, fill):
    encoded = task_of(kind, "zyx").encode(sample_of(np.full((8, 9, 10), fill)))
    assert np.isfinite(encoded.values).all()
    assert encoded.values.dtype == np.float32
    assert encoded.values.shape == encoded.valid.shape
    assert encoded.valid[0].all()
    nothing = task_of(kind, "zyx").encode(
        sample_of(np.full((8, 9, 10), fill), np.zeros((8, 9, 10), bool))
    )
    assert not nothing.valid.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_perfect_outputs_have_the_best_score_and_the_smallest_loss(kind, axes):
    shape = (40, 44) if axes == "yx" else (20, 36, 36)
    task = task_of(kind, axes)
    encoded = task.encode(sample_of(packed(3, shape)))
    outputs = torch.from_numpy(outputs_of(task, encoded.values))[None]
    target = task.target(
        torch.from_numpy(encoded.values)[None], torch.from_numpy(encoded.valid)[None]
    )
    counts = ConfusionCounts.zeros(len(task.score_names))
    counts.add(task.decide(outputs), task.scored(target))
    assert [score.iou for score in counts.scores()] == [1.0] * len(task.score_names)
    terms = task.default_loss
    loss = build_loss(
        [{"name": t.name, "weight": t.weight, "channels": t.channels, **t.arguments} for t in terms]
    )
    assert loss(outputs, target) < 0.05 < loss(torch.zeros_like(outputs), target)


def test_a_boundary_is_as_wide_as_asked_for():
    ids = np.repeat([[1] * 10 + [2] * 10], 9, axis=0)
    for width, n in ((0.5, 2), (1.5, 2), (2.0, 4), (3.2, 6)):
        values = task_of("boundary", boundary_width=width).encode(sample_of(ids)).values
        assert values[1, 4].sum() == n


def test_a_gap_between_two_objects_is_a_boundary():
    ids = np.repeat([[1, 1, 1, 0, 2, 2, 0, 0, 0]], 5, axis=0)
    values = task_of("boundary").encode(sample_of(ids)).values
    assert values[1, 2].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_default_offsets_are_shorter_along_coarse_axes():
    assert default_offsets((1.0, 1.0))[2:] == ((-3, 0), (0, -3), (-9, 0), (0, -9))
    assert default_offsets((10.0, 1.0, 1.0)) == (
        *((-1, 0, 0), (0, -1, 0), (0, 0, -1)),
        *((-2, 0, 0), (0, -3, 0), (0, 0, -3), (0, -9, 0), (0, 0, -9)),
    )


def test_the_card_s_decoder_has_the_offsets_of_the_targets():
    task = task_of("affinities", offsets=((-1, 0), (0, -1), (0, -4)))
    assert task.n_outputs == 4
    assert task.decoder.parameters == {"offsets": [[-1, 0], [0, -1], [0, -4]]}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("affinities", {"offsets": ((-1, 0, 0),)}, "does not fit 2 axes"),
        ("affinities", {"offsets": ((-1, 0), (-1, 0))}, "given twice"),
        ("affinities", {"offsets": ((0, -4),)}, "reaches a neighbour"),
        ("affinities", {"decoder": {"offsets": [[-1, 0]]}}, "offsets of its own"),
        ("boundary", {"decoder": {"min_sise": 4}}, "unknown parameters: min_sise"),
        ("flows", {"decoder": {"n_steps": 0}}, "n_steps"),
        ("distance", {"classes": (ClassConfig(name="a"), ClassConfig(name="b"))}, "of one class"),
        ("boundary", {"classes": ()}, "has no classes"),
    ],
)
def test_what_cannot_be_right_is_refused(kind, fields, message):
    config = {"classes": (ClassConfig(name="cell"),)} | fields
    with pytest.raises(InputError, match=message):
        build_task(TaskConfig(kind=kind, **config), "yx")


def test_labels_that_are_no_ids_are_refused():
    task = task_of("boundary")
    with pytest.raises(InputError, match="float32"):
        task.encode(sample_of(np.zeros((4, 4), np.float32)))
    with pytest.raises(InputError, match="id -5"):
        task.encode(sample_of(np.full((4, 4), -5)))
    two = np.zeros((2, 4, 4), np.int64)
    with pytest.raises(InputError, match="2 channels"):
        task.encode(Sample(np.zeros((1, 4, 4), np.float32), two, two == 0))


def test_axes_and_spacing_must_fit():
    with pytest.raises(InputError, match="'zyx' or 'yx'"):
        task_of("flows", "xyz")
    with pytest.raises(InputError, match="expected 2 positive"):
        task_of("flows", "yx", (1.0, 0.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_the_engine_finds_the_objects_in_perfect_outputs(kind, axes, tmp_path):
    """A network that passes its input on, run by the engine on the targets."""
    from lamella.engines.engine import EngineJob
    from lamella.engines.lamella.engine import LamellaEngine
    from lamella.testing.engine import RecordingSink
    from lamella.volume import Volume
    from lamella.wire.card import NormalisationDoc
    from lamella.wire.request import InputDoc, SegmentRequest

    sys.path.insert(0, str(Path(__file__).parents[2] / "engines"))
    from lamella_models import make_folder

    sys.path.pop(0)
    n = len(axes)
    ids = ellipsoids(1, (40, 44) if n == 2 else (20, 36, 36))
    task = task_of(kind, axes)
    outputs = outputs_of(task, task.encode(sample_of(ids)).values)
    weights = np.eye(task.n_outputs).reshape(task.n_outputs, task.n_outputs, *(1,) * n)
    model = make_folder(
        tmp_path / "model",
        axes=axes,
        weights=weights,
        bias=(0.0,) * task.n_outputs,
        task=task.card_task,
        classes=task.card_classes,
        decoder=task.decoder,
        normalisation=NormalisationDoc(kind="none"),
        tile=(16,) * n,
    )
    volume = Volume.from_array(outputs, spacing=(1.0,) * n, unit="um", axes=f"c{axes}")
    request = SegmentRequest(
        input=InputDoc(path="targets"), model=model.card.id, options={"check": "never"}
    )
    (tmp_path / "run").mkdir()
    result = LamellaEngine().segment(
        EngineJob(volume, request, model, tmp_path / "run"), RecordingSink()
    )
    assert precision(result.labels.load(), ids) == 1.0
