"""Self-supervised denoising: a small network trained on the noisy image itself.

Some pixels are hidden (filled from their neighbours) and the network learns to say what stood
there. Noise that is independent from pixel to pixel cannot be guessed, structure can: what is
learnt is the image without its noise. No clean image is needed, none is ever seen.

The image is first brought to a scale where its noise has standard deviation 1 everywhere. A share
of the pixels is never a target of training; the loss on those says when to stop. The weights used
are a running average over the training steps.

The network errs where it has seen too little of a structure, non-local means where nothing looks
alike: their weighted mean is better than either. The weight follows from how well each guesses the
pixels held out, shown the image without them.

Source: A. Krull, T.-O. Buchholz, F. Jug, "Noise2Void: learning denoising from single noisy images",
CVPR 2019; J. Batson, L. Royer, "Noise2Self", ICML 2019.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import DeviceError, InputError
from lamella.core.optional import require
from lamella.core.progress import Progress, ProgressSink
from lamella.restoration.blind_spot_network import NetworkShape, draw_weights, run_network
from lamella.restoration.non_local_means import NonLocalMeans
from lamella.restoration.source import ChannelSource
from lamella.restoration.tiles import Triple
from lamella.restoration.variance import Stabiliser
from lamella.volume.box import Box

__all__ = ["BlindSpot", "BlindSpotOptions", "train_blind_spot"]

_HIDDEN = 0.11
"""Share of pixels hidden in a step."""
_HELD_OUT = 0.03
"""Share of pixels that are never a target of training."""
_KEEP = 0.98
"""Of the running average of the weights, per step."""
_PATIENCE = 3
_IMPROVEMENT = 1e-3
_N_JUDGED = 2
"""Windows on which the network and non-local means are compared."""
_TRAINING_VOXELS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class BlindSpotOptions:
    """How long and on what.

    Attributes:
        is_volumetric: a 3-D network; else one 2-D network for all slices.
        strength: share of the denoised image in the result, 0..1.
        n_steps: most steps of training.
        seed: of weights, crops and hidden pixels.
        device: auto, cpu, cuda or cuda:N.
    """

    is_volumetric: bool = False
    strength: float = 1.0
    n_steps: int = 160
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise InputError(
                f"strength {self.strength:g} means nothing to a trained network",
                hint="give the share of the denoised image, above 0 and at most 1",
            )


@dataclass(frozen=True)
class BlindSpot:
    """A network trained for one image; a :class:`~lamella.restoration.tiles.Restorer`.

    Attributes:
        stabiliser: of the image's noise.
        options: it was trained with.
        mean: of the stabilised training voxels.
        std: of the same.
        weights: arrays in the order of the network.
        n_steps: steps it was trained.
        loss: mean square error on the pixels held out, in units of the noise's variance; 1 is what
            a perfect image would give.
        share: weight of the network in the mean with non-local means, 0..1.
    """

    stabiliser: Stabiliser
    options: BlindSpotOptions
    mean: float
    std: float
    weights: list[Any]
    n_steps: int
    loss: float
    share: float = 1.0
    shape: NetworkShape = field(init=False)

    def __post_init__(self) -> None:
        shape = NetworkShape.for_volumes(self.options.is_volumetric)
        object.__setattr__(self, "shape", shape)

    @property
    def halo(self) -> Triple:
        """Reach of the network."""
        reach = self.shape.halo
        return (reach if self.options.is_volumetric else 0, reach, reach)

    @property
    def alignment(self) -> Triple:
        """Grid of its pooling."""
        grid = self.shape.alignment
        return (grid if self.options.is_volumetric else 1, grid, grid)

    @property
    def tile(self) -> Triple:
        """Of some hundred megabytes of activations."""
        return (32, 128, 128) if self.options.is_volumetric else (4, 512, 512)

    @property
    def parameters(self) -> dict[str, Any]:
        """What was trained, how it went, and the SHA-256 of the weights."""
        digest = hashlib.sha256()
        for tensor in self.weights:
            digest.update(tensor.detach().cpu().numpy().astype("<f4").tobytes())
        return {
            "gain": self.stabiliser.gain,
            "variance": self.stabiliser.variance,
            "is_volumetric": self.options.is_volumetric,
            "strength": self.options.strength,
            "seed": self.options.seed,
            "n_steps": self.n_steps,
            "held_out_loss": self.loss,
            "share_of_network": self.share,
            "width": self.shape.width,
            "n_levels": self.shape.n_levels,
            "network_sha256": digest.hexdigest(),
        }

    def apply(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a block, (z, y, x)."""
        torch = _torch()
        image = self.stabiliser.stabilise(block)
        stable = (image - np.float32(self.mean)) / np.float32(self.std)
        device = self.weights[0].device
        planes = stable[None, None] if self.options.is_volumetric else stable[:, None]
        with torch.inference_mode():
            parts = [
                run_network(torch, self.shape, self.weights, part.to(device)).cpu().numpy()
                for part in torch.from_numpy(np.ascontiguousarray(planes)).split(1)
            ]
        found = np.concatenate(parts).reshape(block.shape)
        found = found * np.float32(self.std) + np.float32(self.mean)
        result = self.stabiliser.restore(found.astype(np.float32))
        if self.share < 1:
            alike = _companion(self.stabiliser, self.options).average(image)
            part = np.float32(self.share)
            result = part * result + (np.float32(1) - part) * self.stabiliser.restore(alike)
        share = np.float32(self.options.strength)
        if share == 1:
            return result.astype(np.float32)
        return (share * result + (np.float32(1) - share) * block).astype(np.float32)


def train_blind_spot(
    source: ChannelSource, stabiliser: Stabiliser, options: BlindSpotOptions, sink: ProgressSink
) -> BlindSpot:
    """Train a network on a channel.

    Args:
        source: what will be denoised; windows of it are read, up to sixteen million voxels.
        stabiliser: of its noise.
        options: how.
        sink: progress in steps, and cancellation between them.

    Raises:
        MissingDependencyError: without PyTorch.
        DeviceError: for a device that is not there.
    """
    torch = _torch()
    device = _device(torch, options.device)
    training = _Training(torch, device, options, _windows(source, stabiliser, options))
    loss, n_steps = training.run(sink)
    share = training.share(_companion(stabiliser, options))
    return BlindSpot(
        stabiliser=stabiliser,
        options=options,
        mean=training.mean,
        std=training.std,
        weights=training.best,
        n_steps=n_steps,
        loss=loss * training.std**2,
        share=share,
    )


class _Training:
    """Weights, optimiser and the pixels held out."""

    def __init__(
        self,
        torch: Any,
        device: Any,
        options: BlindSpotOptions,
        windows: list[NDArray[np.float32]],
    ) -> None:
        self.torch, self.device, self.options = torch, device, options
        self.mean = float(np.mean([w.mean(dtype=np.float64) for w in windows]))
        self.std = max(
            1e-6, float(np.sqrt(np.mean([((w - self.mean) ** 2).mean() for w in windows])))
        )
        self.windows = [
            torch.from_numpy((w - np.float32(self.mean)) / np.float32(self.std)) for w in windows
        ]
        self.shape = NetworkShape.for_volumes(options.is_volumetric)
        self.random = np.random.default_rng(options.seed)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.held = [self._chosen(w.shape, _HELD_OUT) for w in self.windows]
        self.weights = draw_weights(torch, self.shape, seed=options.seed, device=device)
        self.average = [w.detach().clone() for w in self.weights]
        self.best = self.average
        self.kernel = _neighbours(torch, self.shape.n_spatial).to(device)
        self.crop, self.batch = ((16, 64, 64), 2) if options.is_volumetric else ((128, 128), 4)

    def run(self, sink: ProgressSink) -> tuple[float, int]:
        """Train until the held-out loss stands still; returns it and the steps taken."""
        torch, total = self.torch, self.options.n_steps
        optimiser = torch.optim.Adam(self.weights, lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 2e-3, total_steps=total, pct_start=0.1
        )
        every = max(1, total // 10)
        best, waited, taken = np.inf, 0, 0
        for step in range(1, total + 1):
            sink.check()
            self._step(optimiser)
            schedule.step()
            sink.emit(Progress("train", step, total, "steps"))
            if step % every and step != total:
                continue
            loss, taken = self._held_out_loss(), step
            waited = 0 if loss < best * (1 - _IMPROVEMENT) else waited + 1
            if loss < best:
                best = loss
                self.best = [w.clone() for w in self.average]
            if waited >= _PATIENCE:
                break
        return float(best), taken

    def share(self, companion: NonLocalMeans) -> float:
        """Weight of the network in the mean, from what guesses the pixels held out best."""
        torch, above, below = self.torch, 0.0, 0.0
        for window, held in zip(self.windows[:_N_JUDGED], self.held, strict=False):
            image, hidden = window[None, None].to(self.device), held[None, None].to(self.device)
            with torch.inference_mode():
                filled = self._filled(image, hidden)
                found = run_network(torch, self.shape, self.best, filled)[hidden].cpu().numpy()
            stable = filled.cpu().numpy().reshape((-1, *window.shape[-2:]))
            alike = companion.average(stable * np.float32(self.std) + np.float32(self.mean))
            alike = ((alike - self.mean) / self.std)[held.numpy().reshape(alike.shape)]
            truth = image[hidden].cpu().numpy()
            above += float(((truth - alike) * (found - alike)).sum(dtype=np.float64))
            below += float(((found - alike) ** 2).sum(dtype=np.float64))
        best = min(1.0, max(0.0, above / below)) if below > 0 else 1.0
        # In use both see the pixel itself too, which serves the network more than the comparison
        # without it tells: half way to equal shares.
        return 0.5 * (best + 0.5)

    def _step(self, optimiser: Any) -> None:
        torch = self.torch
        crops, allowed = zip(*(self._draw_crop() for _ in range(self.batch)), strict=True)
        images = torch.stack(crops)[:, None].to(self.device)
        hidden = (self._chosen(images.shape, _HIDDEN) & torch.stack(allowed)[:, None]).to(
            self.device
        )
        found = run_network(torch, self.shape, self.weights, self._filled(images, hidden))
        loss = ((found - images)[hidden] ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for kept, new in zip(self.average, self.weights, strict=True):
                kept.lerp_(new, 1 - _KEEP)

    def _draw_crop(self) -> tuple[Any, Any]:
        """A crop and where its pixels may be targets, turned at random."""
        which = int(self.random.integers(len(self.windows)))
        window, held = self.windows[which], self.held[which]
        starts = [
            int(self.random.integers(n - c + 1))
            for n, c in zip(window.shape, self._fit(window), strict=True)
        ]
        cut = tuple(slice(a, a + c) for a, c in zip(starts, self._fit(window), strict=True))
        image, allowed = window[cut], ~held[cut]
        flips = [axis for axis in range(image.ndim) if self.random.random() < 0.5]
        is_turned = self.random.random() < 0.5 and image.shape[-1] == image.shape[-2]
        if is_turned:
            image, allowed = image.transpose(-1, -2), allowed.transpose(-1, -2)
        return image.flip(flips), allowed.flip(flips)

    def _fit(self, window: Any) -> tuple[int, ...]:
        """The crop's extent inside a window: on the network's grid (windows are)."""
        return tuple(min(c, n) for c, n in zip(self.crop, window.shape, strict=True))

    def _filled(self, images: Any, hidden: Any) -> Any:
        """Hidden pixels replaced by the weighted mean of their neighbours that are not."""
        torch = self.torch
        functional = torch.nn.functional
        convolve = functional.conv3d if self.shape.n_spatial == 3 else functional.conv2d
        seen = (~hidden).to(images.dtype)
        total = convolve(images * seen, self.kernel, padding=1)
        weight = convolve(seen, self.kernel, padding=1)
        return torch.where(hidden, total / weight.clamp(min=1e-3), images)

    def _held_out_loss(self) -> float:
        """Mean square error of the averaged network on the pixels held out."""
        torch = self.torch
        square, count = 0.0, 0
        with torch.inference_mode():
            for window, held in zip(self.windows[:4], self.held, strict=False):
                cut = tuple(
                    slice(0, min(n, c * 2)) for n, c in zip(window.shape, self.crop, strict=True)
                )
                image, hidden = (
                    window[cut][None, None].to(self.device),
                    held[cut][None, None].to(self.device),
                )
                found = run_network(torch, self.shape, self.average, self._filled(image, hidden))
                square += float(((found - image)[hidden] ** 2).sum())
                count += int(hidden.sum())
        return square / max(1, count)

    def _chosen(self, shape: Any, share: float) -> Any:
        return self.torch.rand(tuple(shape), generator=self.generator) < share


def _windows(
    source: ChannelSource, stabiliser: Stabiliser, options: BlindSpotOptions
) -> list[NDArray[np.float32]]:
    """Parts of the image to train on, stabilised, on the network's grid, (y, x) or (z, y, x)."""
    extent = (32, 128, 128) if options.is_volumetric else (1, 512, 512)
    grid = NetworkShape.for_volumes(options.is_volumetric).alignment
    grids = (grid if options.is_volumetric else 1, grid, grid)
    # Shorter axes are mirrored up to the grid.
    size = tuple(
        min(e, -(-n // g) * g) for e, n, g in zip(extent, source.shape, grids, strict=True)
    )
    n_windows = max(1, _TRAINING_VOXELS // int(np.prod(size)))
    tiles = [
        range(0, max(1, n - s + 1), max(1, s)) for n, s in zip(source.shape, size, strict=True)
    ]
    places = [(z, y, x) for z in tiles[0] for y in tiles[1] for x in tiles[2]]
    random = np.random.default_rng(options.seed)
    if len(places) > n_windows:
        chosen = random.choice(len(places), n_windows, replace=False)
        places = [places[k] for k in sorted(chosen.tolist())]
    found: list[NDArray[np.float32]] = []
    for start in places:
        box = Box(start, tuple(a + s for a, s in zip(start, size, strict=True)))
        stable = stabiliser.stabilise(source.read(box))
        found.append(stable if options.is_volumetric else stable[0])
    return found


def _companion(stabiliser: Stabiliser, options: BlindSpotOptions) -> NonLocalMeans:
    """Non-local means that the network's result is averaged with."""
    return NonLocalMeans.fitting(stabiliser, is_volumetric=options.is_volumetric)


def _neighbours(torch: Any, n_spatial: int) -> Any:
    """Weights of the neighbours of a pixel: 1 over the distance, 0 for itself."""
    positions = np.stack(np.meshgrid(*([-1, 0, 1],) * n_spatial, indexing="ij"))
    distance = np.sqrt((positions**2).sum(axis=0))
    weights = np.divide(1.0, distance, out=np.zeros_like(distance), where=distance > 0)
    return torch.from_numpy(weights.astype(np.float32))[None, None]


def _torch() -> Any:
    return require("torch", extra="restore", purpose="self-supervised denoising")


def _device(torch: Any, wanted: str) -> Any:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            f"the device {wanted!r} is not there: PyTorch sees no GPU here", hint="use --device cpu"
        )
    return torch.device(wanted)
