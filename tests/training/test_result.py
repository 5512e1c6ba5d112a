"""The model folder of a training: scores are those of what is stored, and nothing is guessed."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from lamella.core.errors import ModelError
from lamella.io.format import open_labels, open_volume
from lamella.models.folder import ModelFolder
from lamella.networks.registry import build_network
from lamella.training import validation
from lamella.training.augment import Sample
from lamella.training.configuration import TaskConfig, TrainConfig
from lamella.training.metrics import ConfusionCounts
from lamella.training.result import write_result
from lamella.training.source import SourceInfo
from lamella.training.target import Target
from lamella.training.task import Encoded, build_task
from lamella.volume.box import Box
from lamella.wire.card import ClassDoc, DecoderDoc, NormalisationDoc
from lamella.wire.request import SpacingDoc


def discs(seed, shape=(64, 64), n=6, radius=6):
    """A noisy image with bright discs, normalised, and their ids."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.int64)
    points = np.stack(np.indices(shape), -1)
    for k in range(n):
        center = rng.uniform(radius, np.array(shape) - radius)
        ids[((points - center) ** 2).sum(-1) < radius**2] = k + 1
    image = rng.normal(0, 0.4, shape) + 2.0 * (ids > 0)
    return ((image - image.mean()) / image.std()).astype(np.float32), ids


@dataclass
class MemoryRegion:
    name: str
    specimen: str
    image: np.ndarray
    labels: np.ndarray
    valid: np.ndarray

    @property
    def shape(self):
        return self.image.shape

    def read(self, box):
        where = (slice(None), *box.slices())
        return Sample(self.image[None][where], self.labels[where], self.valid[where])


@dataclass
class MemorySource:
    info: SourceInfo
    parts: dict = field(default_factory=dict)

    def draw(self, rng, shape):
        region = self.parts["train"][int(rng.integers(len(self.parts["train"])))]
        start = [int(rng.integers(0, n - s + 1)) for n, s in zip(region.shape, shape, strict=True)]
        return region.read(
            Box(tuple(start), tuple(a + s for a, s in zip(start, shape, strict=True)))
        )

    def regions(self, split):
        return self.parts.get(split, ())


class SemanticTask:
    """Discs are class 1; class 2 never occurs."""

    n_outputs = 3
    card_task = "semantic"
    card_classes = (
        ClassDoc(value=0, name="background"),
        ClassDoc(value=1, name="disc", color=(255, 0, 0)),
        ClassDoc(value=2, name="unicorn"),
    )
    decoder = DecoderDoc(kind="argmax")
    score_names = ("background", "disc", "unicorn")

    def encode(self, sample):
        return Encoded((sample.labels[0] > 0).astype(np.int64), sample.valid[0])

    def target(self, values, valid):
        return Target(values.long(), valid, True)

    def decide(self, logits):
        return logits.argmax(1)

    def scored(self, target):
        return target


class MultilabelTask(SemanticTask):
    n_outputs = 2
    card_classes = SemanticTask.card_classes
    decoder = DecoderDoc(kind="threshold", parameters={"threshold": 0.5})
    score_names = ("disc", "unicorn")

    def encode(self, sample):
        disc = (sample.labels[0] > 0).astype(np.float32)
        values = np.stack([disc, np.zeros_like(disc)])
        valid = np.stack([sample.valid[0], np.zeros_like(sample.valid[0])])
        return Encoded(values, valid)

    def target(self, values, valid):
        return Target(values.float(), valid, False)

    def decide(self, logits):
        return logits > 0


class ObjectTask(SemanticTask):
    n_outputs = 2
    card_task = "instance"
    card_classes = SemanticTask.card_classes[:2]
    decoder = DecoderDoc(kind="boundary_watershed")
    score_names = ("foreground",)

    def encode(self, sample):
        ids = sample.labels[0]
        inside = ids > 0
        edge = np.zeros_like(inside)
        for axis in range(ids.ndim):
            differs = np.diff(ids, axis=axis) != 0
            low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(ids.ndim))
            high = tuple(slice(1, None) if a == axis else slice(None) for a in range(ids.ndim))
            edge[low] |= differs
            edge[high] |= differs
        return Encoded(
            np.stack([inside, edge & inside]).astype(np.float32),
            np.stack([sample.valid[0]] * 2),
        )

    def target(self, values, valid):
        return Target(values.float(), valid, False)

    def decide(self, logits):
        return logits[:, :1] > 0

    def scored(self, target):
        return Target(target.values[:, :1], target.valid[:, :1], False)


def region(seed, name, specimen, task=None, shape=(64, 64)):
    image, ids = discs(seed, shape)
    valid = np.ones((1, *shape), bool)
    valid[:, :, -4:] = False
    return MemoryRegion(name, specimen, image, ids[None], valid)


def source_of(*, validation=2, test=1, spacing=(8.0, 8.0), **changes):
    parts = {
        "train": [region(k, f"t{k}", "mouse-1") for k in range(4)],
        "validation": [region(10 + k, f"v{k}", "mouse-2") for k in range(validation)],
        "test": [region(20 + k, f"e{k}", "mouse-3") for k in range(test)],
    }
    info = {
        "axes": "yx",
        "n_channels": 1,
        "spacing": None if spacing is None else SpacingDoc(values=spacing, unit="nm"),
        "normalisation": NormalisationDoc(kind="zscore"),
        "specimens": {"train": ("mouse-1",), "validation": ("mouse-2",), "test": ("mouse-3",)},
        "description": "discs",
        "licence": "CC0-1.0",
    }
    return MemorySource(SourceInfo(**{**info, **changes}), parts)


def config_of(n_outputs=3, **model):
    return TrainConfig.model_validate(
        {
            "model": {"id": "discs", "licence": "CC0-1.0", "overlap_fraction": 0.25, **model},
            "task": {"kind": "semantic", "classes": [{"name": "disc"}]},
            "data": {"kind": "pairs"},
            "network": {"id": "compact_unet2d", "arguments": {"widths": [8, 8]}},
            "trainer": {"patch": [32, 32], "steps": 60},
            "seed": 5,
        }
    )


_TRAINED = {}


def trained(task):
    """A network that has learnt a little, the same every time."""
    if type(task) not in _TRAINED:
        torch.manual_seed(0)
        network = build_network(
            "compact_unet2d",
            {"in_channels": 1, "out_channels": task.n_outputs, "widths": [8, 8]},
        )
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        patches = source_of().parts["train"]
        for step in range(40):
            sample = patches[step % 4].read(Box((0, 0), (64, 64)))
            encoded = task.encode(sample)
            target = task.target(
                torch.from_numpy(encoded.values)[None], torch.from_numpy(encoded.valid)[None]
            )
            channels = target.as_channels(task.n_outputs)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                network(torch.from_numpy(sample.image)[None]),
                channels.values,
                weight=channels.valid.float(),
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        _TRAINED[type(task)] = network.state_dict()
    network = build_network(
        "compact_unet2d", {"in_channels": 1, "out_channels": task.n_outputs, "widths": [8, 8]}
    )
    network.load_state_dict(_TRAINED[type(task)])
    return network


def plain_iterate_logits(network, region, *, tile, overlap_fraction, device, precision="fp32"):
    """Boxes of half a region each, whole context: what any cover must give, but for borders."""
    whole = Box.from_shape(region.shape)
    with torch.no_grad():
        logits = network(torch.from_numpy(region.read(whole).image)[None].to(device))
    half = region.shape[0] // 2
    for start, stop in ((0, half), (half, region.shape[0])):
        box = Box((start, *[0] * (len(region.shape) - 1)), (stop, *region.shape[1:]))
        yield box, logits[:, :, start:stop], region.read(box)


@pytest.fixture(autouse=True)
def _validation(request, monkeypatch):
    """Logits of whole regions: what is tested here does not depend on tiles."""
    if not getattr(request.function, "has_tiles", False):
        monkeypatch.setattr(validation, "iterate_logits", plain_iterate_logits)


def written(tmp_path, task=None, source=None, config=None, network=None):
    task = task or SemanticTask()
    return write_result(
        config or config_of(task.n_outputs),
        network if network is not None else trained(task),
        source or source_of(),
        task,
        run_dir=tmp_path / "run",
        steps_done=40,
        device="cpu",
    )


def metrics_of(result, split, **conditions):
    return {
        metric.name: metric.value
        for metric in result.folder.card.metrics
        if metric.data.startswith(split)
        and all(metric.conditions.get(k) == v for k, v in conditions.items())
    }


def test_scores_are_those_of_the_stored_weights(tmp_path):
    result = written(tmp_path)
    folder = ModelFolder.open(tmp_path / "run" / "model")
    network, task = folder.load_network(), SemanticTask()
    counts = ConfusionCounts.zeros(3)
    for part in source_of().parts["test"]:
        for _, logits, sample in plain_iterate_logits(
            network, part, tile=(32, 32), overlap_fraction=0.25, device="cpu"
        ):
            encoded = task.encode(sample)
            target = task.target(
                torch.from_numpy(encoded.values)[None], torch.from_numpy(encoded.valid)[None]
            )
            counts.add(task.decide(logits), target)
    expected = counts.scores()[1]
    scores = metrics_of(result, "test", **{"class": "disc"})
    assert scores["IoU"] == round(expected.iou, 4)
    assert scores["Dice"] == round(expected.dice, 4) > 0.8
    assert set(scores) == {"IoU", "Dice", "precision", "recall"}
    assert result.scores["test"]["disc"]["iou"] == pytest.approx(expected.iou, abs=1e-6)


def test_what_never_occurs_has_no_score(tmp_path):
    result = written(tmp_path)
    named = {m.conditions.get("class") for m in result.folder.card.metrics}
    assert "unicorn" not in named
    assert result.scores["validation"]["unicorn"]["iou"] is None
    assert any("unicorn never occurs in the validation data" in text for text in result.warnings)
    assert "Unicorn never occurs in the validation" in result.folder.card.training.notes


def test_card_says_how_the_model_came_to_be(tmp_path):
    card = written(tmp_path).folder.card
    assert card.network.arguments == {"in_channels": 1, "out_channels": 3, "widths": [8, 8]}
    assert card.spacing == SpacingDoc(values=(8.0, 8.0), unit="nm")
    assert (card.divisor, card.tile) == ((2, 2), (32, 32))
    assert (card.training.seed, card.training.steps) == (5, 40)
    assert "train: mouse-1; validation: mouse-2; test: mouse-3" in card.training.notes
    assert card.training.data_licence == "CC0-1.0"
    data = {m.data for m in card.metrics}
    assert "validation split, 2 regions of mouse-2" in data
    assert "test split, 1 region of mouse-3" in data


def test_native_spacing_and_a_tile_that_has_to_grow(tmp_path):
    config = config_of(use_native_spacing=True, tile=(31, 33))
    card = written(tmp_path, config=config).folder.card
    assert card.spacing is None
    assert card.tile == (32, 34)


def test_temperature_is_fitted_on_validation_alone(tmp_path):
    first = written(tmp_path / "a").folder.card
    assert first.calibration is not None
    assert first.calibration.data.startswith("validation split")
    errors = [m for m in first.metrics if m.name == "calibration error"]
    assert [m.conditions["temperature"] for m in errors] == [1.0, first.calibration.temperature]
    # Nothing of the test regions gets in: other ones, the same temperature.
    source = source_of()
    source.parts["test"] = [region(99, "other", "mouse-9")]
    other = written(tmp_path / "b", source=source).folder.card
    assert other.calibration == first.calibration


def test_too_sure_networks_are_told_so(tmp_path):
    network = trained(SemanticTask())
    with torch.no_grad():
        network.head.weight.mul_(8)
        network.head.bias.mul_(8)
    plain = written(tmp_path / "a").folder.card.calibration.temperature
    card = written(tmp_path / "b", network=network).folder.card
    assert card.calibration.temperature == pytest.approx(8 * plain, rel=0.1)
    before, after = (m.value for m in card.metrics if m.name == "calibration error")
    assert after < before


def test_without_validation_it_is_not_calibrated_and_says_so(tmp_path):
    result = written(tmp_path, source=source_of(validation=0))
    assert result.folder.card.calibration is None
    assert "there is no validation data: the model is not calibrated" in result.warnings
    assert "validation" not in result.scores
    assert "a patch of the training data" in result.folder.card.training.notes


def test_without_anything_to_judge(tmp_path):
    result = written(tmp_path, source=source_of(validation=0, test=0))
    assert result.folder.card.metrics == ()
    assert any("nobody knows how good" in text for text in result.warnings)


def test_sigmoid_outputs(tmp_path):
    result = written(tmp_path, task=MultilabelTask())
    card = result.folder.card
    assert card.calibration is not None
    assert 0.05 < card.calibration.temperature < 20
    # The unknown class takes no part: it is valid nowhere.
    assert result.scores["validation"]["unicorn"]["dice"] is None
    assert result.scores["validation"]["disc"]["dice"] > 0.8


def test_objects_are_decoded_and_matched(tmp_path):
    result = written(tmp_path, task=ObjectTask())
    scores = metrics_of(result, "test")
    assert {"AP at IoU 0.5", "VOI split", "VOI merge", "IoU"} <= set(scores)
    assert 0 < scores["AP at IoU 0.5"] <= 1
    assert result.scores["test"]["objects"]["voi_split"] >= 0
    example = open_labels(result.folder.path / "example_output.tif")
    assert example.load().max() > 1


def test_objects_where_there_are_none(tmp_path):
    source = source_of()
    for part in source.parts["test"]:
        part.labels[...] = 0
    result = written(tmp_path, task=ObjectTask(), source=source)
    assert not metrics_of(result, "test")
    assert any("there is no object in the test data" in text for text in result.warnings)


def test_the_example_can_be_segmented_again(tmp_path):
    import lamella

    result = written(tmp_path)
    image = open_volume(result.folder.path / "example_input.tif")
    assert image.spacing.values == (8.0, 8.0)
    assert image.spacing.unit == "nm"
    assert set(result.folder.card.files) >= {"example_input.tif", "example_output.tif"}
    run = lamella.segment(image, str(result.folder.path), run_dir=tmp_path / "segmented")
    expected = open_labels(result.folder.path / "example_output.tif").load()
    assert (run.labels.load() == expected).mean() > 0.999
    assert 0.05 < (expected == 1).mean() < 0.95


@pytest.mark.parametrize(
    "doc",
    [
        NormalisationDoc(kind="percentile", low=1, high=99),
        NormalisationDoc(kind="percentile", low=1, high=99, clip=True),
        NormalisationDoc(kind="fixed", mean=40.0, std=120.0, low=-1000, high=1000),
        NormalisationDoc(kind="none"),
    ],
)
def test_examples_of_other_normalisations(tmp_path, doc):
    result = written(tmp_path, source=source_of(normalisation=doc))
    image = open_volume(result.folder.path / "example_input.tif").load()
    if doc.kind == "fixed":
        # Back in the intensities of the file, not in those of the network.
        assert np.ptp(image) > 100
    assert image.dtype == (np.uint16 if doc.kind == "percentile" and not doc.clip else np.float32)


def test_a_model_without_example_and_in_single_precision(tmp_path):
    small = written(tmp_path / "a").folder
    config = config_of(example=False, half=False)
    folder = written(tmp_path / "b", config=config).folder
    assert "example_input.tif" not in folder.card.files
    assert folder.weights_path.stat().st_size > 1.5 * small.weights_path.stat().st_size
    loaded = folder.load_network().state_dict()
    for name, value in trained(SemanticTask()).state_dict().items():
        assert torch.equal(loaded[name].float(), value.float())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = trained(SemanticTask())
    with torch.no_grad():
        next(network.parameters())[0] = math.nan
    with pytest.raises(ModelError, match="float16 cannot hold"):
        written(tmp_path, network=network)
    assert not (tmp_path / "run" / "model").exists()


def test_a_second_result_replaces_the_first(tmp_path):
    written(tmp_path)
    result = written(tmp_path, config=config_of(title="Second"))
    assert ModelFolder.open(tmp_path / "run" / "model").card.title == "Second"
    assert "lamella segment IMAGE --model" in result.next_steps


def with_tiles(test):
    """Run a test on the tiles of the training loop."""
    test.has_tiles = True
    return test


@with_tiles
@pytest.mark.parametrize("kind", ["semantic", "multilabel", "boundary", "distance", "flows"])
def test_every_kind_of_task_on_tiles(tmp_path, kind):
    task = build_task(
        TaskConfig.model_validate({"kind": kind, "classes": [{"name": "disc"}]}), "yx"
    )
    source = source_of()
    if task.card_task == "semantic":
        for part in (one for parts in source.parts.values() for one in parts):
            part.labels = (part.labels > 0).astype(np.int64)
    torch.manual_seed(1)
    network = build_network(
        "compact_unet2d", {"in_channels": 1, "out_channels": task.n_outputs, "widths": [8, 8]}
    )
    result = written(tmp_path, task=task, source=source, network=network.eval())
    assert result.folder.card.decoder == task.decoder
    assert result.folder.card.calibration is not None
    assert set(result.scores) == {"validation", "test"}
    assert result.scores["test"]["disc"]["iou"] is not None


def test_networks_with_deep_supervision_lose_their_coarser_heads(tmp_path):
    arguments = {
        "filters": [4, 4, 4],
        "strides": [1, 2, 2],
        "kernel_sizes": [3, 3, 3],
    }
    config = config_of().model_copy(
        update={
            "network": config_of().network.model_copy(
                update={"id": "dynunet", "arguments": arguments}
            ),
            "loss": config_of().loss.model_copy(update={"deep_supervision": True}),
            "trainer": config_of().trainer.model_copy(update={"patch": (16, 16, 16)}),
        }
    )
    full = {**arguments, "in_channels": 1, "out_channels": 3, "deep_supervision": True}
    network = build_network("dynunet", full).eval()
    source = source_of(spacing=None, axes="zyx")
    source.parts = {
        split: [region(k, f"r{k}", "mouse", shape=(16, 24, 24)) for k in range(1)]
        for split in ("train", "validation", "test")
    }
    result = written(tmp_path, source=source, config=config, network=network)
    assert "deep_supervision" not in result.folder.card.network.arguments
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            result.folder.load_network()(image), network(image), rtol=0.05, atol=0.05
        )


def test_a_network_that_has_learnt_nothing_is_said_to(tmp_path):
    network = trained(SemanticTask())
    with torch.no_grad():
        network.head.weight.mul_(1e-3)
        network.head.bias.mul_(1e-3)
    result = written(tmp_path, network=network)
    assert any("has learnt too little" in text for text in result.warnings)
