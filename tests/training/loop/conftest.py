"""A small training: bright discs on noise, a network of a few hundred weights."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from lamella.networks import registry
from lamella.networks.registry import NetworkDescriptor
from lamella.training.augment import Sample
from lamella.training.configuration import TrainConfig
from lamella.training.source import SourceInfo
from lamella.training.task import build_task
from lamella.wire.card import NormalisationDoc


def discs(rng, shape):
    """An image with discs, and where they are."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int64)
    for _ in range(3):
        cy, cx = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        labels[(y - cy) ** 2 + (x - cx) ** 2 < rng.integers(9, 50)] = 1
    image = rng.normal(0, 0.5, shape) + 2.0 * labels
    return image.astype(np.float32)[None], labels[None]


class DiscRegion:
    """A whole image that judges."""

    def __init__(self, name, seed, shape=(40, 56)):
        self.name, self.specimen, self.shape = name, f"specimen-{seed}", shape
        self._image, self._labels = discs(np.random.default_rng(seed), shape)

    def read(self, box):
        inside = (slice(None), *box.slices())
        labels = self._labels[inside]
        return Sample(self._image[inside], labels, np.ones(labels.shape, bool))


@dataclass
class DiscSource:
    """Discs without end."""

    n_validation: int = 2
    poison: int = -1
    """Number of the draw that gives NaN."""
    n_drawn: int = 0
    log: list = field(default_factory=list)

    @property
    def info(self):
        return SourceInfo(
            axes="yx",
            n_channels=1,
            spacing=None,
            normalisation=NormalisationDoc(kind="none"),
            specimens={"train": ("discs",), "validation": ("specimen-901",), "test": ()},
            description="drawn discs",
            licence="CC0-1.0",
            fingerprint={"discs": "drawn"},
        )

    def draw(self, rng, shape):
        number = self.n_drawn
        self.n_drawn += 1
        image, labels = discs(rng, shape)
        if number == self.poison:
            image[0, 3, 4] = np.nan
        self.log.append(float(image.sum()))
        return Sample(image, labels, np.ones(labels.shape, bool))

    def locate(self, rng, shape):
        return "discs.tif, box [0:32, 0:32]"

    def regions(self, split):
        n = self.n_validation if split == "validation" else 0
        return [DiscRegion(f"image-{i}", 900 + i) for i in range(n)]


class NoisyNetwork(torch.nn.Module):
    """Normalisation with running statistics, and dropout: all that makes resuming hard."""

    def __init__(self, n_in, n_out, dropout):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(n_in, 6, 3, padding=1, bias=False),
            torch.nn.BatchNorm2d(6),
            torch.nn.ReLU(),
            torch.nn.Dropout(dropout),
            torch.nn.Conv2d(6, n_out, 3, padding=1),
        )

    def forward(self, batch):
        return self.body(batch)


@dataclass(frozen=True)
class NoisyArguments:
    in_channels: int
    out_channels: int
    dropout: float = 0.3


@pytest.fixture(autouse=True)
def noisy_network(monkeypatch):
    """The network under the id ``noisy``, for this test alone."""
    descriptor = NetworkDescriptor(
        "noisy",
        "a few weights",
        "yx",
        NoisyArguments,
        lambda a: NoisyNetwork(a.in_channels, a.out_channels, a.dropout),
    )
    known = registry.find_network
    monkeypatch.setattr(
        registry, "find_network", lambda name: descriptor if name == "noisy" else known(name)
    )
    monkeypatch.setattr(
        "lamella.training.build.find_network",
        lambda name: descriptor if name == "noisy" else known(name),
    )


@pytest.fixture
def make_config():
    """A configuration of the small training; groups by name change it."""

    def make(**groups):
        values = {
            "model": {"id": "discs", "tile": [32, 32], "overlap_fraction": 0.25},
            "task": {"kind": "semantic", "classes": ["disc"]},
            "data": {"kind": "pairs", "root": "nowhere"},
            "network": {"id": "noisy"},
            "augmentation": {"enabled": True},
            "optimiser": {"learning_rate": 0.02},
            "trainer": {
                "steps": 12,
                "batch_size": 2,
                "patch": [32, 32],
                "validate_every": 4,
                "workers": 0,
                "devices": "cpu",
                "threads": 1,
                "loggers": [],
            },
        }
        for name, changes in groups.items():
            here = values.get(name)
            values[name] = {**here, **changes} if isinstance(here, dict) else changes
        return TrainConfig.model_validate(values)

    return make


@pytest.fixture
def make_task():
    return lambda config: build_task(config.task, "yx")


@pytest.fixture
def make_source():
    return DiscSource
