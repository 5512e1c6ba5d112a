"""Small runtimes, stores and listeners for the loop."""

import numpy as np
import pytest

from lamella.core.errors import RunCancelledError
from lamella.inference.slab import VolumeSlabs
from lamella.volume import Volume


def box_filter(image, radius=1):
    """Sum over a cube around each voxel, zeros beyond the border; float32, (z, y, x).

    The additions are in the same order for every voxel, so equal input gives equal bits.
    """
    padded = np.pad(image, radius)
    total = np.zeros_like(image)
    for shift in np.ndindex(*(2 * radius + 1,) * 3):
        window = tuple(slice(s, s + n) for s, n in zip(shift, image.shape, strict=True))
        total = total + padded[window]
    return total


class LocalRuntime:
    """A "network" that reaches ``radius`` voxels far; three classes."""

    name, device, precision, n_outputs = "local", "cpu", "fp32", 3

    def __init__(self, tile, *, radius=1, batch=1, n_channels=1):
        self.batch_shape = (batch, n_channels, *tile)
        self.radius = radius
        self.n_calls = 0

    def __call__(self, batch):
        self.n_calls += 1
        return np.stack([self.logits(one[0]) for one in batch])

    def logits(self, image):
        value = box_filter(image, self.radius)
        return np.stack([0.7 - np.abs(value), value, -value * np.float32(0.9)])


class MemoryStore:
    """A layer store in memory that remembers what was synced."""

    def __init__(self, shape, unit, dtype=np.uint8, fail_after=None):
        self.array = np.full(shape, 77, dtype)
        self.unit = unit
        self.n_synced = 0
        self.boxes = []
        self.fail_after = fail_after

    def write(self, box, values):
        if self.fail_after is not None and len(self.boxes) >= self.fail_after:
            raise OSError(28, "No space left on device")
        self.boxes.append(box)
        lead = (slice(None),) * (self.array.ndim - 3)
        self.array[lead + box.slices()] = values

    def sync(self):
        self.n_synced += 1


class Hearing:
    """A listener that may stop the run after some tiles."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.n_checks = 0
        self.counts = []
        self.boxes = []

    def check(self):
        self.n_checks += 1
        if self.stop_after is not None and self.n_checks > self.stop_after:
            raise RunCancelledError("stopped by the test")

    def tiles(self, done, total, eta_s):
        self.counts.append((done, total))

    def finished(self, box):
        self.boxes.append(box)


@pytest.fixture
def noise():
    """A function that makes a normalised source of noise."""

    def make(shape, seed=0):
        data = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        return VolumeSlabs(Volume.from_array(data)), data

    return make


@pytest.fixture
def kit():
    """The helper classes, by name."""

    class Kit:
        box_filter = staticmethod(box_filter)
        LocalRuntime = LocalRuntime
        MemoryStore = MemoryStore
        Hearing = Hearing

    return Kit
