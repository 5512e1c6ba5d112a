"""What a bundle does to an image before its network, as plain steps.

Only transforms on the list are understood; they are carried out by Lamella's own streaming code
(:mod:`lamella.engines.monai.source`). Anything else is refused by name, and can be run by MONAI
itself with ``--trust``.

Examples:
    >>> resolver = Resolver({"preprocessing": {"_target_": "Compose", "transforms": [
    ...     {"_target_": "LoadImaged", "keys": "image"},
    ...     {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 2,
    ...      "b_min": 0.0, "b_max": 1.0, "clip": True}]}})
    >>> read_preprocessing(resolver)
    (Linear(offset=0.0, scale=0.5, shift=0.0, low=0.0, high=1.0),)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamella.core.errors import ModelError
from lamella.engines.monai.resolver import Component, Resolver, needs_trust

__all__ = [
    "Crop",
    "Linear",
    "MinMax",
    "Orient",
    "Percentiles",
    "Space",
    "Step",
    "Zscore",
    "is_about",
    "plain_name",
    "read_preprocessing",
    "unknown",
]

IMAGE = "image"


# --- Steps --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Orient:
    """Axes in an anatomical order, such as ``RAS``: the first axis runs to the Right."""

    axcodes: str


@dataclass(frozen=True, slots=True)
class Space:
    """Another spacing, in mm, in the order of the axes at that point; linear or nearest."""

    pixdim: tuple[float, ...]
    is_nearest: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """``(v - offset) * scale + shift``, then cut to ``low`` .. ``high`` where given."""

    offset: float
    scale: float
    shift: float = 0.0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class MinMax:
    """Smallest and largest value become ``low`` and ``high`` (0 and 1 where not given)."""

    low: float | None
    high: float | None
    is_per_channel: bool


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Two percentiles become ``b_min`` and ``b_max``, cut to them with ``clips``."""

    lower: float
    upper: float
    b_min: float | None
    b_max: float | None
    clips: bool
    is_per_channel: bool


@dataclass(frozen=True, slots=True)
class Zscore:
    """Mean 0 and standard deviation 1; with ``nonzero`` of and for the voxels that are not 0."""

    nonzero: bool
    is_per_channel: bool
    subtrahend: float | None = None
    divisor: float | None = None


@dataclass(frozen=True, slots=True)
class Crop:
    """The box around all voxels above 0."""


Step = Orient | Space | Linear | MinMax | Percentiles | Zscore | Crop


# --- Preprocessing ------------------------------------------------------------------------------

_IGNORED = (
    "LoadImage", "EnsureChannelFirst", "AddChannel", "AsChannelFirst", "EnsureType", "ToTensor",
    "CastToType", "Identity", "SelectItems", "ToDevice",
)  # fmt: skip


def read_preprocessing(resolver: Resolver, *, key: str = "preprocessing") -> tuple[Step, ...]:
    """The steps of a bundle's ``preprocessing``.

    Raises:
        ModelError: naming a transform, or an argument of one, that is not understood.
    """
    if key not in resolver:
        raise needs_trust(f"the bundle's inference configuration has no {key!r}")
    steps: list[Step] = []
    for component in resolver.components(f"@{key}", where=key):
        name = plain_name(component, (*_PREPROCESSING, *_IGNORED))
        if name in _IGNORED or not is_about(component, IMAGE):
            continue
        build = _PREPROCESSING.get(name)
        if build is None:
            raise unknown(component, (*_PREPROCESSING, *_IGNORED))
        step = build(_Arguments(component))
        if step is not None:
            steps.append(step)
    return tuple(steps)


class _Arguments:
    """Arguments of a component: every one is used, or has to have its default."""

    def __init__(self, component: Component) -> None:
        self._component = component
        arguments = component.arguments
        self._left = {name: arguments[name] for name in arguments if name not in _HARMLESS}

    def take(self, name: str, default: Any = None) -> Any:
        """An argument; lists of one value (one for each key) are that value."""
        found = self._left.pop(name, default)
        if isinstance(found, list | tuple) and len(found) == 1 and not isinstance(default, tuple):
            return found[0]
        return found

    def number(self, name: str) -> float | None:
        found = self.take(name)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise self.refuse(f"{name}={found!r}")
        return None if found is None else float(found)

    def done(self, **defaults: Any) -> None:
        """Refuse what is left, unless it is what it would have been anyway."""
        for name, value in self._left.items():
            if name not in defaults or self.take_of(value) != defaults[name]:
                raise self.refuse(f"{name}={value!r}")

    @staticmethod
    def take_of(value: Any) -> Any:
        is_one = isinstance(value, list | tuple) and len(value) == 1
        return value[0] if is_one else value

    def refuse(self, what: str) -> ModelError:
        component = self._component
        return needs_trust(
            f"{component.where} of the bundle is {component.name} with {what}, which is not"
            " understood here"
        )


_HARMLESS = (
    "keys", "allow_missing_keys", "image_only", "dtype", "device", "track_meta", "data_type",
    "reader", "ensure_channel_first", "prune_meta_pattern", "wrap_sequence", "channel_dim",
    "meta_keys", "meta_key_postfix", "lazy", "labels", "recompute_affine", "strict_check",
)  # fmt: skip


def _orientation(arguments: _Arguments) -> Orient:
    codes = arguments.take("axcodes")
    arguments.done(as_closest_canonical=False)
    text = "".join(codes) if isinstance(codes, list | tuple) else str(codes or "")
    kinds = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
    if len(text) not in (2, 3) or len({kinds.get(code, code) for code in text}) != len(text):
        raise arguments.refuse(f"axcodes={codes!r}")
    return Orient(text)


def _spacing(arguments: _Arguments) -> Space:
    pixdim = arguments.take("pixdim", ())
    mode = arguments.take("mode", "bilinear")
    arguments.done(
        padding_mode="border", diagonal=False, align_corners=False, scale_extent=False,
        min_pixdim=None, max_pixdim=None, ensure_same_shape=True,
    )  # fmt: skip
    values = list(pixdim) if isinstance(pixdim, list | tuple) else [pixdim]
    if len(values) == 1:
        values = values * 3
    if not all(isinstance(v, int | float) and v > 0 for v in values):
        raise arguments.refuse(f"pixdim={pixdim!r}")
    words = {"bilinear": False, "linear": False, "trilinear": False, 1: False,
             "nearest": True, 0: True}  # fmt: skip
    if not isinstance(mode, str | int) or mode not in words:
        raise arguments.refuse(f"mode={mode!r}")
    return Space(tuple(float(v) for v in values), words[mode])


def _scale_range(arguments: _Arguments) -> Linear:
    a_min, a_max = arguments.number("a_min"), arguments.number("a_max")
    b_min, b_max = arguments.number("b_min"), arguments.number("b_max")
    clips = bool(arguments.take("clip", False))
    arguments.done()
    if a_min is None or a_max is None or a_min == a_max or (b_min is None) != (b_max is None):
        raise arguments.refuse(f"a_min={a_min}, a_max={a_max}, b_min={b_min}, b_max={b_max}")
    return linear_range(a_min, a_max, b_min, b_max, clips=clips)


def linear_range(
    a_min: float, a_max: float, b_min: float | None, b_max: float | None, *, clips: bool
) -> Linear:
    """``a_min`` .. ``a_max`` to ``b_min`` .. ``b_max`` (0 .. 1 without), as MONAI does it."""
    scale, shift = 1.0 / (a_max - a_min), 0.0
    if b_min is not None and b_max is not None:
        scale, shift = (b_max - b_min) * scale, b_min
    return Linear(a_min, scale, shift, b_min if clips else None, b_max if clips else None)


def _scale(arguments: _Arguments) -> MinMax | Linear:
    low = arguments.take("minv", 0.0)
    high = arguments.take("maxv", 1.0)
    factor = arguments.number("factor")
    per_channel = bool(arguments.take("channel_wise", False))
    arguments.done()
    if low is None and high is None:
        return Linear(0.0, 1.0 + (factor or 0.0))
    if factor is not None and (low, high) != (0.0, 1.0):
        raise arguments.refuse(f"minv={low}, maxv={high}, factor={factor}")
    return MinMax(_float(low), _float(high), per_channel)


def _percentiles(arguments: _Arguments) -> Percentiles:
    lower, upper = arguments.number("lower"), arguments.number("upper")
    b_min, b_max = arguments.number("b_min"), arguments.number("b_max")
    clips = bool(arguments.take("clip", False))
    per_channel = bool(arguments.take("channel_wise", False))
    arguments.done(relative=False)
    if lower is None or upper is None or not 0 <= lower < upper <= 100:
        raise arguments.refuse(f"lower={lower}, upper={upper}")
    return Percentiles(lower, upper, b_min, b_max, clips, per_channel)


def _normalise(arguments: _Arguments) -> Zscore:
    subtrahend, divisor = arguments.number("subtrahend"), arguments.number("divisor")
    nonzero = bool(arguments.take("nonzero", False))
    per_channel = bool(arguments.take("channel_wise", False))
    arguments.done()
    return Zscore(nonzero, per_channel, subtrahend, divisor)


def _crop(arguments: _Arguments) -> Crop:
    source = arguments.take("source_key", IMAGE)
    arguments.done(
        margin=0, k_divisible=1, channel_indices=None, allow_smaller=False, mode="constant",
        start_coord_key="foreground_start_coord", end_coord_key="foreground_end_coord",
    )  # fmt: skip
    if source != IMAGE:
        raise arguments.refuse(f"source_key={source!r}")
    return Crop()


_PREPROCESSING: Mapping[str, Callable[[_Arguments], Step]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "ScaleIntensityRange": _scale_range,
    "ScaleIntensity": _scale,
    "ScaleIntensityRangePercentiles": _percentiles,
    "NormalizeIntensity": _normalise,
    "CropForeground": _crop,
}


# --- Helpers ------------------------------------------------------------------------------------


def plain_name(component: Component, known: Sequence[str]) -> str:
    """The name without the ending that says it works on dictionaries."""
    for ending in ("Dict", "d", "D", ""):
        name = component.name.removesuffix(ending)
        if component.name.endswith(ending) and name in known:
            return name
    return component.name


def is_about(component: Component, key: str) -> bool:
    """Whether a transform works on an entry; one that names none works on all."""
    keys = component.arguments.get("keys", key)
    names = keys if isinstance(keys, list | tuple) else [keys]
    return key in names


def unknown(component: Component, known: Sequence[str]) -> ModelError:
    """The error of a transform that is on no list."""
    return needs_trust(
        f"{component.where} of the bundle is the transform {component.name}, which is not"
        f" understood here; those that are: {', '.join(sorted(known))}"
    )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
