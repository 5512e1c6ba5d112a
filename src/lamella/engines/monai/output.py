"""How a bundle moves its network over an image, and what it makes of the output.

As for the steps before the network (:mod:`lamella.engines.monai.recipe`), only what is on the lists
is understood, and carried out by Lamella's own code (:mod:`lamella.engines.monai.decode`).

Examples:
    >>> resolver = Resolver({"postprocessing": {"_target_": "Compose", "transforms": [
    ...     {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    ...     {"_target_": "Invertd", "keys": "pred", "nearest_interp": False},
    ...     {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}]}})
    >>> output = read_output(resolver, n_outputs=2, is_resampled=True)
    >>> output.activation, output.resampled, output.threshold
    ('softmax', 'probabilities', None)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lamella.core.errors import ModelError
from lamella.engines.monai.recipe import is_about, plain_name, unknown
from lamella.engines.monai.resolver import Component, Resolver, needs_trust

__all__ = ["Inferer", "Output", "read_inferer", "read_output"]

Activation = Literal["none", "softmax", "sigmoid"]
PREDICTION = "pred"


@dataclass(frozen=True, slots=True)
class Inferer:
    """How the network is moved over the image.

    Attributes:
        roi: extent of a tile in the network's order; 0 = the whole axis.
        overlap: share of a tile in common with its neighbour.
        is_gaussian: weights fall off from the centre; equal otherwise.
        sigma: of the Gaussian, as a share of the tile.
    """

    roi: tuple[int, ...]
    overlap: float
    is_gaussian: bool
    sigma: float = 0.125


@dataclass(frozen=True, slots=True)
class Output:
    """How logits become labels.

    Attributes:
        activation: what makes probabilities of them.
        resampled: what is brought back to the image's grid: logits, probabilities, or labels.
        is_nearest: whether by the nearest voxel.
        threshold: of every channel by itself; None for the largest channel.
        keep_largest: labels of which only the largest piece is kept; None = of none.
        notes: what was assumed, as sentences.
    """

    activation: Activation
    resampled: Literal["logits", "probabilities", "labels"]
    is_nearest: bool
    threshold: float | None
    keep_largest: tuple[int, ...] | None = None
    notes: tuple[str, ...] = field(default=())


# --- Inferer ------------------------------------------------------------------------------------


def read_inferer(resolver: Resolver, *, n_axes: int) -> Inferer:
    """How a bundle's network is moved over an image; the whole image at once where it is not said.

    Raises:
        ModelError: for other inferers than the simple and the sliding one.
    """
    component = resolver.component("inferer", where="inferer") if "inferer" in resolver else None
    if component is None or component.name == "SimpleInferer":
        return Inferer((0,) * n_axes, 0.0, is_gaussian=False)
    if component.name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
        raise needs_trust(f"the bundle's inferer is {component.name}, which is not understood here")
    arguments = dict(component.arguments)
    roi = arguments.get("roi_size", 0)
    sizes = list(roi) if isinstance(roi, list | tuple) else [roi] * n_axes
    if len(sizes) != n_axes or not all(size is None or isinstance(size, int) for size in sizes):
        raise needs_trust(f"the inferer's roi_size {roi!r} does not fit {n_axes} axes")
    overlap, mode = arguments.get("overlap", 0.25), str(arguments.get("mode", "constant"))
    if not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise needs_trust(f"the inferer's overlap {overlap!r} is no share of 0 to 1")
    if arguments.get("padding_mode", "constant") != "constant" or arguments.get("cval", 0) != 0:
        raise needs_trust("the inferer pads the image with something else than 0")
    sigma = arguments.get("sigma_scale", 0.125)
    if not isinstance(sigma, int | float) or sigma <= 0:
        raise needs_trust(f"the inferer's sigma_scale {sigma!r} is no positive number")
    return Inferer(
        tuple(0 if size is None or size <= 0 else size for size in sizes),
        float(overlap),
        is_gaussian=mode == "gaussian",
        sigma=float(sigma),
    )


# --- Postprocessing -----------------------------------------------------------------------------

_IGNORED_AFTER = (
    "EnsureType", "ToTensor", "CastToType", "Identity", "SaveImage", "DeleteItems", "SelectItems",
    "EnsureChannelFirst", "ToDevice",
)  # fmt: skip
_AFTER = ("Activations", "Invert", "AsDiscrete", "KeepLargestConnectedComponent")


def read_output(resolver: Resolver, *, n_outputs: int, is_resampled: bool) -> Output:
    """What a bundle's ``postprocessing`` makes of the network's output.

    Args:
        resolver: its configuration.
        n_outputs: channels of the network.
        is_resampled: whether the network works on another grid than the image's.

    Raises:
        ModelError: naming a transform that is not understood.
    """
    members: Sequence[Component] = ()
    if "postprocessing" in resolver:
        members = resolver.components("@postprocessing", where="postprocessing")
    state = _State()
    for component in members:
        name = plain_name(component, (*_AFTER, *_IGNORED_AFTER))
        if name in _IGNORED_AFTER or not is_about(component, PREDICTION):
            continue
        if name not in _AFTER:
            raise unknown(component, (*_AFTER, *_IGNORED_AFTER))
        state.take(name, component)
    return state.output(n_outputs=n_outputs, is_resampled=is_resampled)


@dataclass
class _State:
    """What was met so far, in order."""

    activation: Activation = "none"
    discrete: Literal["", "argmax", "threshold"] = ""
    threshold: float = 0.5
    inverted: str = ""
    is_nearest: bool = False
    largest: tuple[int, ...] | None = None

    def take(self, name: str, component: Component) -> None:
        arguments = component.arguments
        if name == "Activations":
            self._activate(arguments, component)
        elif name == "Invert":
            self.inverted = (
                "labels" if self.discrete else "logits" if self.activation == "none" else "shares"
            )
            self.is_nearest = bool(_only(arguments.get("nearest_interp", True)))
        elif name == "AsDiscrete":
            self._decide(arguments, component)
        else:
            self._keep(arguments, component)

    def _activate(self, arguments: Mapping[str, Any], component: Component) -> None:
        is_softmax, is_sigmoid = (
            bool(_only(arguments.get(kind))) for kind in ("softmax", "sigmoid")
        )
        if (is_softmax and is_sigmoid) or arguments.get("other") is not None or self.discrete:
            raise _not_understood(component)
        if is_softmax or is_sigmoid:
            self.activation = "softmax" if is_softmax else "sigmoid"

    def _decide(self, arguments: Mapping[str, Any], component: Component) -> None:
        threshold = _only(arguments.get("threshold"))
        if _only(arguments.get("rounding")) is not None or self.discrete:
            raise _not_understood(component)
        if _only(arguments.get("argmax")):
            self.discrete = "argmax"
        elif threshold is not None and threshold is not False:
            self.discrete = "threshold"
            # Old bundles write threshold: true and mean one half.
            self.threshold = 0.5 if threshold is True else float(threshold)

    def _keep(self, arguments: Mapping[str, Any], component: Component) -> None:
        if not self.discrete:
            raise needs_trust(f"{component.where} of the bundle comes before labels are decided")
        given = arguments.get("applied_labels")
        if arguments.get("num_components", 1) != 1 or not arguments.get("independent", True):
            raise _not_understood(component)
        labels = given if isinstance(given, list | tuple) else [] if given is None else [given]
        self.largest = tuple(int(label) for label in labels)

    def output(self, *, n_outputs: int, is_resampled: bool) -> Output:
        notes: list[str] = []
        discrete = self.discrete
        if not discrete:
            discrete = "argmax" if n_outputs > 1 and self.activation != "sigmoid" else "threshold"
            notes.append(f"the bundle does not say how labels are decided; {discrete} was assumed")
        activation = self.activation
        if discrete == "threshold" and activation == "softmax":
            raise needs_trust("the bundle cuts softmax probabilities at a threshold")
        if discrete == "threshold" and activation == "none" and not self.discrete:
            activation = "sigmoid"
        if discrete == "argmax" and n_outputs == 1:
            raise ModelError(
                "the bundle takes the largest of one channel, which is always the first",
                hint="its postprocessing does not fit its network: ask whoever made it",
            )
        words: dict[str, Literal["logits", "probabilities", "labels"]] = {
            "logits": "logits", "shares": "probabilities", "labels": "labels", "": "labels"
        }  # fmt: skip
        if is_resampled and not self.inverted:
            notes.append(
                "the bundle leaves its labels on the network's grid; they were brought back to the"
                " input's by the nearest voxel"
            )
        resampled = words[self.inverted]
        return Output(
            activation=activation,
            resampled=resampled,
            is_nearest=self.is_nearest or resampled == "labels",
            threshold=self.threshold if discrete == "threshold" else None,
            keep_largest=self.largest,
            notes=tuple(notes),
        )


def _not_understood(component: Component) -> ModelError:
    names = ", ".join(component.arguments)
    return needs_trust(
        f"{component.where} of the bundle is {component.name} ({names}) in a way that is not"
        " understood here"
    )


def _only(value: Any) -> Any:
    """One value, of a list with one for each key."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
