"""Targets of classes: values, masks, colours and what is counted."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.training.augment import Sample
from lamella.training.configuration import ClassConfig, TaskConfig
from lamella.training.losses import build_loss
from lamella.training.metrics import ConfusionCounts
from lamella.training.task import build_task

KINDS = ("semantic", "multilabel", "boundary", "distance", "affinities", "flows")
# What the three cone types see (LMS) of linear RGB, and what is left without the long or the medium
# cones: Viénot, Brettel & Mollon (1999).
_LMS = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
_LOST = {
    "protanope": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "deuteranope": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


def task_of(kind="semantic", names=("a", "b"), **fields):
    classes = tuple(ClassConfig(name=name) for name in names)
    return build_task(TaskConfig(kind=kind, classes=classes, **fields), "yx")


def sample_of(labels, valid=None):
    valid = np.ones(labels.shape, bool) if valid is None else valid
    return Sample(np.zeros((1, *labels.shape[1:]), np.float32), labels, valid)


def batch(task, encoded):
    return task.target(
        torch.from_numpy(encoded.values)[None], torch.from_numpy(encoded.valid)[None]
    )


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 5))
def test_perfect_outputs_have_the_best_score(seed, k):
    rng = np.random.default_rng(seed)
    names = tuple(f"class {n}" for n in range(k))
    semantic, multilabel = task_of("semantic", names), task_of("multilabel", names)
    labels = rng.integers(0, k + 1, (1, 12, 12)).astype(np.uint8)
    labels.ravel()[: k + 1] = np.arange(k + 1)
    several = np.stack([labels[0] == n for n in range(1, k + 1)]).astype(np.float32)
    for task, array in ((semantic, labels), (multilabel, several)):
        valid = rng.random(array.shape) < 0.9
        valid.reshape(len(array), -1)[:, : k + 1] = True
        encoded = task.encode(sample_of(array, valid))
        target = batch(task, encoded)
        outputs = 20 * target.as_channels(task.n_outputs).values - 10
        counts = ConfusionCounts.zeros(len(task.score_names))
        counts.add(task.decide(outputs), task.scored(target))
        assert [score.iou for score in counts.scores()] == [1.0] * len(task.score_names)
        assert counts.counts[0].sum() == valid[0].sum()
        terms = [
            {"name": t.name, "weight": t.weight, "channels": t.channels, **t.arguments}
            for t in task.default_loss
        ]
        assert build_loss(terms)(outputs, target) < 0.05


def test_semantic_values_are_those_of_the_card():
    task = task_of("semantic", ("nucleus", "cytoplasm"))
    assert task.n_outputs == 3
    assert [c.value for c in task.card_classes] == [0, 1, 2]
    assert task.score_names == ("background", "nucleus", "cytoplasm")
    assert (task.card_task, task.decoder.kind) == ("semantic", "argmax")
    encoded = task.encode(sample_of(np.array([[[0, 2, 1]]], np.uint8)))
    assert encoded.values.dtype == np.int64
    assert encoded.values.tolist() == [[0, 2, 1]]


def test_what_is_not_valid_may_hold_anything():
    task = task_of("semantic")
    labels = np.array([[[0, 255, 1]]])
    encoded = task.encode(sample_of(labels, labels < 255))
    assert encoded.values.tolist() == [[0, 0, 1]]
    assert encoded.valid.tolist() == [[True, False, True]]
    multilabel = task_of("multilabel")
    encoded = multilabel.encode(sample_of(np.array([[[1.0, np.nan]], [[0.0, 1.0]]])))
    assert encoded.values.tolist() == [[[1, 0]], [[0, 1]]]
    assert encoded.valid.tolist() == [[[True, False]], [[True, True]]]


def test_the_decoder_s_threshold_decides():
    task = task_of("multilabel", decoder={"threshold": 0.8})
    logits = torch.tensor([[0.0, 1.3, 1.5]]).expand(2, 3)[None, :, None]
    assert task.decoder.parameters == {"threshold": 0.8}
    assert task.decide(logits)[0, 0, 0].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("semantic", np.full((1, 2, 2), 3), "value 3; the task has classes 0 to 2"),
        ("semantic", np.full((1, 2, 2), -1), "value -1"),
        ("semantic", np.zeros((2, 2, 2)), "2 channels, the task wants 1"),
        ("multilabel", np.zeros((3, 2, 2)), "3 channels, the task wants 2"),
    ],
)
def test_labels_that_do_not_fit(kind, labels, message):
    with pytest.raises(InputError, match=message):
        task_of(kind).encode(sample_of(labels))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ()}, "no classes"),
        ({"names": ("a", "a")}, "named twice: a"),
        ({"names": ("background", "a")}, "leave it out"),
        ({"decoder": {"threshold": 0.5}}, "no parameter threshold"),
        ({"kind": "multilabel", "decoder": {"threshold": 1}}, "threshold is 1"),
        ({"kind": "multilabel", "decoder": {"limit": 1}}, "no parameter limit"),
    ],
)
def test_what_cannot_be_right_is_refused(fields, message):
    with pytest.raises(InputError) as caught:
        task_of(**fields)
    assert message in f"{caught.value.message} {caught.value.hint}"


def lightness_and_colour(rgb):
    """CIE L*a*b* of RGB 0..1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    )
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def seen_by(colors, who):
    rgb = np.array(colors) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if who in _LOST:
        linear = linear @ (np.linalg.inv(_LMS) @ _LOST[who] @ _LMS).T
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("who", ["everybody", "protanope", "deuteranope"])
def test_colours_of_few_classes_are_told_apart_by_everybody(who):
    task = task_of(names=tuple("abcdefg"))
    lab = lightness_and_colour(seen_by([c.color for c in task.card_classes], who))
    distances = [np.linalg.norm(p - q) for p, q in itertools.combinations(lab, 2)]
    assert min(distances) > 10


def test_many_colours_differ_and_chosen_ones_stay():
    assert (
        len({c.color for c in task_of(names=tuple(f"{n}" for n in range(100))).card_classes}) > 99
    )
    first = task_of().card_classes[1].color
    classes = (ClassConfig(name="a"), ClassConfig(name="b", color=first))
    task = build_task(TaskConfig(kind="semantic", classes=classes), "yx")
    assert task.card_classes[2].color == first
    assert task.card_classes[1].color != first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_cards_of_all_kinds_are_what_the_engine_reads(kind, axes):
    from lamella.inference.instance_maps import check_outputs
    from lamella.wire.card import ModelCard, NetworkDoc, TrainingDoc

    config = TaskConfig(kind=kind, classes=(ClassConfig(name="a"),))
    task = pickle.loads(pickle.dumps(build_task(config, axes)))
    card = ModelCard(
        id="m",
        title="M",
        description="",
        task=task.card_task,
        axes=axes,
        classes=task.card_classes,
        network=NetworkDoc(id="unet"),
        n_outputs=task.n_outputs,
        decoder=task.decoder,
        tile=(16,) * len(axes),
        licence="CC0-1.0",
        training=TrainingDoc(data="none", data_licence="CC0-1.0", recipe="none"),
    )
    check_outputs(ModelCard.parse_json(card.to_json().encode(), what="card", error=InputError))
    assert task.default_loss
    assert len(set(task.score_names)) == len(task.score_names)
