"""A bundle's documents as a whole: everything that can be said of it before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import ModelError
from lamella.engines.monai.bundle import WEIGHTS
from lamella.engines.monai.network import network_component
from lamella.engines.monai.output import Inferer, read_inferer, read_output
from lamella.engines.monai.recipe import Crop, Space, Step, read_preprocessing
from lamella.engines.monai.resolver import needs_trust
from lamella.volume.volume import Note

if TYPE_CHECKING:
    from lamella.engines.monai.bundle import Bundle
    from lamella.engines.monai.resolver import Component

__all__ = ["Reading", "installed_version", "read_bundle"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a bundle asks for.

    Attributes:
        bundle: its documents and weights.
        component: its network; None where only MONAI itself can build it.
        steps: before the network; None where only MONAI itself can do them.
        inferer: how the network is moved.
        n_axes: spatial axes of the network.
        n_channels: of the image.
        n_outputs: of the network, as far as its documents say.
        is_trusted: whether its code may run.
        notes: what the user must know.
    """

    bundle: Bundle
    component: Component | None
    steps: tuple[Step, ...] | None
    inferer: Inferer
    n_axes: int
    n_channels: int
    n_outputs: int | None
    is_trusted: bool
    notes: tuple[Note, ...]


def read_bundle(bundle: Bundle, *, is_trusted: bool) -> Reading:
    """Read and check a bundle's documents.

    Args:
        bundle: opened.
        is_trusted: leave to MONAI what is not understood here, instead of refusing it.

    Raises:
        ModelError: naming what is not understood, or contradicts itself.
    """
    metadata, resolver = bundle.metadata, bundle.resolver
    if not bundle.has(WEIGHTS) and not is_trusted:
        raise needs_trust(
            f"the bundle {bundle.name!r} has no plain weights, only TorchScript, which is code"
        )
    component: Component | None = None
    try:
        component = network_component(bundle)
    except ModelError:
        if not is_trusted:
            raise
    arguments: dict[str, Any] = {} if component is None else dict(component.arguments)
    n_axes = _number(arguments, "spatial_dims", "dimensions") or len(metadata.spatial) or 3
    if n_axes not in (2, 3):
        raise ModelError(
            f"the bundle {bundle.name!r} works on {n_axes} spatial axes; 2 or 3 can be run"
        )
    n_channels = _number(arguments, "in_channels") or metadata.n_channels or 1
    n_outputs = _number(arguments, "out_channels") or metadata.n_outputs
    _check_agreement(bundle, n_channels, n_outputs)
    inferer = read_inferer(resolver, n_axes=n_axes)
    steps: tuple[Step, ...] | None = None
    try:
        steps = read_preprocessing(resolver)
        is_resampled = any(isinstance(step, Space | Crop) for step in steps)
        read_output(resolver, n_outputs=n_outputs or 2, is_resampled=is_resampled)
    except ModelError:
        if not is_trusted:
            raise
        steps = None
    return Reading(
        bundle=bundle,
        component=component,
        steps=steps,
        inferer=inferer,
        n_axes=n_axes,
        n_channels=n_channels,
        n_outputs=n_outputs,
        is_trusted=is_trusted,
        notes=_notes(bundle),
    )


def installed_version() -> str:
    """Version of MONAI here, without importing it; empty where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("monai")
    except PackageNotFoundError:
        return ""


def _number(arguments: dict[str, Any], *names: str) -> int | None:
    found = next((arguments[name] for name in names if name in arguments), None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _check_agreement(bundle: Bundle, n_channels: int, n_outputs: int | None) -> None:
    metadata = bundle.metadata
    for what, network, said in (
        ("takes", n_channels, metadata.n_channels),
        ("gives", n_outputs, metadata.n_outputs),
    ):
        if network is not None and said is not None and network != said:
            raise ModelError(
                f"the network of the bundle {bundle.name!r} {what} {network} channel(s), its"
                f" metadata says {said}",
                hint="its documents are of different versions: get the bundle again",
            )


def _notes(bundle: Bundle) -> tuple[Note, ...]:
    wanted, here = bundle.metadata.monai_version, installed_version()
    if not wanted or not here or _minor(wanted) == _minor(here):
        return ()
    text = (
        f"the bundle {bundle.name!r} was made with MONAI {wanted}, MONAI {here} is installed here:"
        " compare its labels with known ones before you rely on them"
    )
    return (Note("version_differs", text),)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
