"""What an image's quality is, in numbers that mean what they say.

* **noise**: standard deviation from the median absolute deviation of a Laplacian residual, where
  the image is dark and where it is bright (photon noise grows with the signal);
* **signal**: p99 - p1 of the lightly smoothed image, the noise's own share taken off;
* **contrast to noise**: signal over noise;
* **sharpness**: share of the signal's energy in fine detail, and the width of the blur.

All are streamed: an image of any depth is judged in the memory of one slice. The two numbers that
people know, mean over standard deviation and variance of the Laplacian, are reported beside them
with a word on how they mislead.

Examples:
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(0, 5, (64, 64)).astype(np.float32)
    >>> scene = np.kron(np.eye(4), np.ones((16, 16))).astype(np.float32) * 200
    >>> report = measure_quality(Volume.from_array(scene + noise))
    >>> report.verdict, round(report.noise_sigma)
    ('clean', 5)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.restoration.noise import (
    MAD_TO_SIGMA,
    NoiseModel,
    NoiseSample,
    fit_noise_model,
    sample_noise,
)
from lamella.restoration.profile import SliceQuality, flag_slices
from lamella.restoration.source import ChannelSource, check_restorable
from lamella.restoration.spectrum import AxisSpectrum, SpectrumSum
from lamella.volume.box import Box
from lamella.volume.volume import Volume

__all__ = ["BLURRED_SIGMA", "MISLEADING", "NOISY_CNR", "Quality", "Verdict", "measure_quality"]

Verdict = Literal["clean", "noisy", "blurred"]

NOISY_CNR = 12.0
"""Below this contrast-to-noise ratio an image is called noisy."""
BLURRED_SIGMA = 1.75
"""From this width of the blur, in pixels, an image that is not noisy is called blurred."""

MISLEADING: dict[str, str] = {
    "mean_over_std": "rises with any offset: pure noise on a bright background scores high",
    "laplacian_variance": "rises with noise and with gain: blurred and noisy beats sharp",
}
"""Two common numbers, and why nothing here depends on them."""

_WINDOW = 512
_N_WINDOWS = 4
"""Of planes beyond 1024 x 1024, 4 x 4 windows of 256 are looked at."""
_SMOOTHING = 1.0
_SMOOTHED_NOISE = 0.5 / math.sqrt(math.pi) / _SMOOTHING
"""White noise after a Gaussian of that sigma, relative to before."""
_RANGE_OF_NOISE = 4.653
"""p99 - p1 of Gaussian noise, in standard deviations."""
_MAX_PAIRS = 2**18
_N_ROWS = 8
_MAX_LAYERS = 512
_BRIGHT = 0.75
"""Where between dark (p1) and bright (p99) the noise of the objects is read."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How noisy and how blurred one channel is.

    Intensities are in the image's own unit, widths in pixels unless they say otherwise.

    Attributes:
        verdict: clean, noisy or blurred (an image that is both is called noisy).
        reason: the verdict in words, with its numbers.
        shape: (z, y, x) or (y, x).
        noise_sigma: of the whole image, as if the noise were the same everywhere.
        noise_dark: standard deviation of the noise in the dark part.
        noise_bright: the same at three quarters of the way up to the bright part.
        noise_gain: growth of the variance with the intensity; 0 for constant noise.
        noise_variance: variance at intensity 0 by the same line.
        signal: p99 - p1 without the noise's share.
        dark: 1st percentile of the smoothed image.
        bright: its 99th percentile.
        contrast_to_noise: signal over the root mean square of noise_dark and noise_bright.
        sharpness: share of fine detail (finer than 10 pixels) in the signal's energy, 0..1.
        sharpness_zyx: the same along single axes; None where an axis is too short.
        blur_sigma: width of the blur as a Gaussian's sigma; None where noise hides it.
        blur_sigma_zyx: the same along single axes, in voxels.
        blur_sigma_physical: ``blur_sigma`` times the spacing in plane.
        unit: of ``blur_sigma_physical``; "voxel" without calibration.
        cutoff: finest frequency that stands above the noise, in cycles per pixel.
        constant_fraction: share of voxels in flat patches (padding, clipping), left out of the
            noise.
        mean_over_std: the common "SNR"; misleads, see :data:`MISLEADING`.
        laplacian_variance: the common "sharpness"; misleads too.
        slices: one row a slice of a volume; empty for an image.
        looked_at: which voxels were looked at, in words.
        spectrum_frequency: cycles per pixel, for drawing.
        spectrum_power: power there, noise included; white noise of standard deviation s gives s².
        spectrum_floor: power of the noise.
    """

    verdict: Verdict
    reason: str
    shape: tuple[int, ...]
    noise_sigma: float
    noise_dark: float
    noise_bright: float
    noise_gain: float
    noise_variance: float
    signal: float
    dark: float
    bright: float
    contrast_to_noise: float
    sharpness: float
    sharpness_zyx: tuple[float | None, float | None, float | None]
    blur_sigma: float | None
    blur_sigma_zyx: tuple[float | None, float | None, float | None]
    blur_sigma_physical: float | None
    unit: str
    cutoff: float
    constant_fraction: float
    mean_over_std: float
    laplacian_variance: float
    slices: tuple[SliceQuality, ...] = ()
    looked_at: str = "all voxels"
    spectrum_frequency: tuple[float, ...] = ()
    spectrum_power: tuple[float, ...] = ()
    spectrum_floor: float = 0.0

    @property
    def noise(self) -> NoiseModel:
        """The noise as a function of the intensity."""
        floor = self.noise_dark**2 if self.noise_gain else self.noise_variance
        return NoiseModel(self.noise_gain, self.noise_variance, min(floor, self.noise_dark**2))

    @property
    def bad_slices(self) -> tuple[SliceQuality, ...]:
        """Slices that differ from their neighbours."""
        return tuple(entry for entry in self.slices if entry.flags)

    def to_dict(self, *, has_slices: bool = True) -> dict[str, Any]:
        """JSON values; numbers that are not finite become null.

        Args:
            has_slices: with the rows of slices and the spectrum, or the numbers of the whole alone.
        """
        document = asdict(self)
        document["misleading"] = dict(MISLEADING)
        if not has_slices:
            for name in ("slices", "spectrum_frequency", "spectrum_power"):
                del document[name]
        return _plain(document)


def measure_quality(volume: Volume, *, sink: ProgressSink | None = None) -> Quality:
    """Judge one channel of an image or a volume.

    Args:
        volume: real intensities with the axes (z) y x; at least 16 x 16 pixels.
        sink: progress and cancellation.

    Raises:
        InputError: for labels, tiny or constant images and voxels that are not finite.
        AxesError: for several channels or time points.
    """
    check_restorable(volume, what="judged")
    sink = sink or SilentSink()
    source = ChannelSource(volume)
    collected = _Collected(source)
    for z in range(source.shape[0]):
        sink.check()
        collected.add(z)
        sink.emit(Progress("quality", z + 1, source.shape[0], "slices"))
    return collected.conclude()


class _Collected:
    """What is gathered slice by slice; its size does not depend on the depth of the volume."""

    def __init__(self, source: ChannelSource) -> None:
        self.source = source
        depth, *plane = source.shape
        self.windows = tuple(_windows(tuple(plane)))
        extent = self.windows[0].shape
        self.spectrum = SpectrumSum.for_plane(extent)
        self.n_pairs = max(512, _MAX_PAIRS // (depth * len(self.windows)))
        self.pairs: list[NoiseSample] = []
        self.smooth: list[NDArray[np.float32]] = []
        self.rows: list[NDArray[np.float32]] = []
        self.slices: list[SliceQuality] = []
        self.count = self.mean = self.square = 0.0
        self.n_inner = self.n_varying = 0
        self.laplacian: list[float] = []

    def add(self, z: int) -> None:
        """Look at a slice, one window after the other."""
        own = SpectrumSum(self.spectrum.tile)
        pairs: list[NoiseSample] = []
        values: list[NDArray[np.float32]] = []
        for window in self.windows:
            box = Box((z, *window.start), (z + 1, *window.stop))
            plane = self.source.read(box)[0]
            pairs.append(self._noise(plane))
            values.append(self._smoothed(plane))
            self._moments(plane)
            own.add_plane(plane)
            if window is self.windows[len(self.windows) // 2] and z < _MAX_LAYERS:
                at = np.linspace(0, plane.shape[0] - 1, _N_ROWS).astype(int)
                self.rows.append(plane[at])
        self.spectrum.merge(own)
        pair = _joined(pairs)
        level = np.concatenate(values)
        low, high = _percentiles(level)
        sigma = MAD_TO_SIGMA * float(np.median(pair.residual)) if pair.residual.size else 0.0
        radial = own.radial()
        self.pairs.append(pair)
        step = max(1, level.size * self.source.shape[0] // _MAX_PAIRS)
        self.smooth.append(level[::step].copy())  # a view would keep the whole slice
        self.slices.append(
            SliceQuality(
                z=z,
                mean=float(level.mean(dtype=np.float64)),
                noise_sigma=sigma,
                signal=_signal(low, high, sigma),
                sharpness=radial.sharpness,
                is_constant=not pair.residual.size,
            )
        )

    def conclude(self) -> Quality:
        """The numbers of the whole."""
        pair = _joined(self.pairs)
        if not pair.residual.size:
            raise InputError(
                "the image is constant: every voxel has the same value as its neighbours",
                hint="check the input with `lamella info`, or choose another --channel",
            )
        model = fit_noise_model(pair)
        sigma = MAD_TO_SIGMA * float(np.median(pair.residual))
        low, high = _percentiles(np.concatenate(self.smooth))
        dark = model.sigma_at(low) if model.is_signal_dependent else sigma
        at = low + _BRIGHT * (high - low)
        bright = model.sigma_at(at) if model.is_signal_dependent else sigma
        signal = _signal(low, high, math.hypot(dark, bright) / math.sqrt(2.0))
        noise = math.hypot(dark, bright) / math.sqrt(2.0)
        radial = self.spectrum.radial()
        axes = self._along_axes()
        std = math.sqrt(self.square / self.count)
        is_volume = "z" in self.source.volume.axes
        blur = radial.blur_sigma
        quality = Quality(
            verdict="clean",
            reason="",
            shape=self.source.volume.spatial_shape,
            noise_sigma=sigma,
            noise_dark=dark,
            noise_bright=bright,
            noise_gain=model.gain,
            noise_variance=model.variance,
            signal=signal,
            dark=low,
            bright=high,
            contrast_to_noise=signal / noise if noise > 0 else math.inf,
            sharpness=radial.sharpness,
            sharpness_zyx=_three(None if a is None else a.sharpness for a in axes),
            blur_sigma=blur,
            blur_sigma_zyx=_three(None if a is None else a.blur_sigma for a in axes),
            blur_sigma_physical=None if blur is None else blur * self._pixel(),
            unit=self.source.volume.unit,
            cutoff=radial.cutoff,
            constant_fraction=1.0 - self.n_varying / max(1, self.n_inner),
            mean_over_std=self.mean / std if std > 0 else math.inf,
            laplacian_variance=float(np.mean(self.laplacian)),
            slices=flag_slices(self.slices, signal) if is_volume else (),
            looked_at=self._looked_at(),
            spectrum_frequency=tuple(map(float, radial.frequency)),
            spectrum_power=tuple(map(float, radial.power)),
            spectrum_floor=radial.floor,
        )
        verdict, reason = _judge(quality)
        return replace(quality, verdict=verdict, reason=reason)

    def _noise(self, plane: NDArray[np.float32]) -> NoiseSample:
        pair = sample_noise(plane, n_samples=plane.size)
        self.n_inner += (plane.shape[0] - 2) * (plane.shape[1] - 2)
        self.n_varying += pair.residual.size
        step = max(1, -(-pair.residual.size // self.n_pairs))
        step |= 1 if step > 2 else step
        # Copies: views would keep the whole slice.
        return NoiseSample(pair.level[::step].copy(), pair.residual[::step].copy())

    def _smoothed(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        from scipy.ndimage import gaussian_filter

        smooth = gaussian_filter(plane, _SMOOTHING, mode="mirror")
        return np.asarray(smooth, np.float32).ravel()

    def _moments(self, plane: NDArray[np.float32]) -> None:
        """Mean, variance and the variance of the Laplacian, for the common numbers."""
        mean = float(plane.mean(dtype=np.float64))
        square = float(((plane - mean) ** 2).sum(dtype=np.float64))
        total = self.count + plane.size
        delta = mean - self.mean
        self.square += square + delta**2 * self.count * plane.size / total
        self.mean += delta * plane.size / total
        self.count = total
        inner = plane[1:-1, 1:-1]
        sides = plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:]
        self.laplacian.append(float((sides - 4 * inner).var(dtype=np.float64)))

    def _along_axes(self) -> tuple[AxisSpectrum | None, AxisSpectrum, AxisSpectrum]:
        """Spectra along z (from a few sections), y and x."""
        along_y, along_x = self.spectrum.along(0), self.spectrum.along(1)
        if len(self.rows) < 16:
            return None, along_y, along_x
        block = np.stack(self.rows)  # (z, row, x)
        sections = SpectrumSum.for_plane((block.shape[0], block.shape[2]))
        for row in range(block.shape[1]):
            sections.add_plane(block[:, row])
        return sections.along(0), along_y, along_x

    def _pixel(self) -> float:
        _, y, x = self.source.spacing_zyx
        return math.sqrt(y * x)

    def _looked_at(self) -> str:
        share = sum(w.size for w in self.windows) / math.prod(self.source.shape[1:])
        return "all voxels" if share >= 1 else f"{share:.0%} of every slice"


def _judge(quality: Quality) -> tuple[Verdict, str]:
    ratio, blur = quality.contrast_to_noise, quality.blur_sigma
    contrast = f"contrast to noise is {ratio:.3g}"
    width = "" if blur is None else f"blurred by {blur:.2f} pixels"
    if ratio < NOISY_CNR:
        more = f"; it is also {width}" if blur is not None and blur >= BLURRED_SIGMA else ""
        return "noisy", f"{contrast}, below {NOISY_CNR:g}{more}"
    if blur is not None and blur >= BLURRED_SIGMA:
        return "blurred", f"{width}, {BLURRED_SIGMA:g} or more; {contrast}"
    return "clean", f"{contrast}, at least {NOISY_CNR:g}" + (
        "" if blur is None else f"; {width}, less than {BLURRED_SIGMA:g}"
    )


def _windows(plane: tuple[int, ...]) -> Iterator[Box]:
    """The parts of a plane that are looked at, all of the same extent."""
    if max(plane) <= 2 * _WINDOW:
        yield Box((0, 0), (plane[0], plane[1]))
        return
    size = [min(n, _WINDOW // 2) for n in plane]
    starts = [
        sorted({int(v) for v in np.linspace(0, n - s, _N_WINDOWS)})
        for n, s in zip(plane, size, strict=True)
    ]
    for y in starts[0]:
        for x in starts[1]:
            yield Box((y, x), (y + size[0], x + size[1]))


def _joined(pairs: list[NoiseSample]) -> NoiseSample:
    return NoiseSample(
        np.concatenate([p.level for p in pairs]), np.concatenate([p.residual for p in pairs])
    )


def _percentiles(values: NDArray[np.float32]) -> tuple[float, float]:
    low, high = np.percentile(values, (1, 99))
    return float(low), float(high)


def _signal(low: float, high: float, sigma: float) -> float:
    """Range of the smoothed image without what its remaining noise adds to it."""
    spread = _RANGE_OF_NOISE * _SMOOTHED_NOISE * sigma
    return math.sqrt(max((high - low) ** 2 - spread**2, 0.0))


def _three(values: Iterator[float | None]) -> tuple[float | None, float | None, float | None]:
    z, y, x = values
    return z, y, x


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
