"""A bundle's network: built from plain arguments by an allow-list, filled with plain weights.

Nothing of the bundle is executed: the class is one of those below, its arguments are literals, and
``model.pt`` is read by ``torch.load(weights_only=True)``. With trust MONAI's own parser builds
whatever the configuration names, TorchScript files run, and pickled checkpoints load.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lamella.core.errors import EngineError, ModelError
from lamella.core.optional import require
from lamella.core.registry import nearest_names
from lamella.engines.monai.bundle import SCRIPT, WEIGHTS
from lamella.engines.monai.resolver import needs_trust

if TYPE_CHECKING:
    from lamella.engines.monai.bundle import Bundle
    from lamella.engines.monai.resolver import Component

__all__ = [
    "NETWORKS",
    "build_network",
    "load_script",
    "load_weights",
    "network_component",
    "run_failed",
]

NETWORKS = (
    "AttentionUnet", "BasicUNet", "BasicUnet", "Basicunet", "DynUNet", "DynUnet", "Dynunet",
    "FlexUNet", "FlexibleUNet", "HighResNet", "SegResNet", "SegResNetDS", "SegResNetDS2",
    "SwinUNETR", "UNETR", "UNet", "Unet", "VNet",
)  # fmt: skip
"""Classes of ``monai.networks.nets`` whose output is one tensor of the input's extent."""

_WRAPPERS = ("model", "state_dict", "network", "net", "model_state_dict")
_PURPOSE = "MONAI bundles"


def network_component(bundle: Bundle) -> Component:
    """Which network a bundle names.

    Raises:
        ModelError: none, or one that only MONAI itself could build.
    """
    resolver = bundle.resolver
    key = "network_def" if "network_def" in resolver else "network"
    if key not in resolver:
        raise needs_trust("the bundle's inference configuration has no 'network_def'")
    component = resolver.component(f"@{key}", where=key)
    if component is None:
        raise needs_trust(f"the bundle's {key} is disabled")
    if component.name not in NETWORKS:
        near = nearest_names(component.name, NETWORKS)
        raise needs_trust(
            f"the bundle's network is {component.name}, which is not among those known here"
            + (f" (near: {', '.join(near)})" if near else "")
        )
    return component


def build_network(component: Component) -> Any:
    """A network of the allow-list, its weights still random.

    Raises:
        ModelError: arguments that the class does not take.
    """
    nets = require("monai.networks.nets", extra="monai", purpose=_PURPOSE)
    arguments = dict(component.arguments)
    if "pretrained" in arguments:
        arguments["pretrained"] = False  # the weights are the bundle's; nothing is downloaded
    try:
        return getattr(nets, component.name)(**arguments)
    except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"MONAI {_version()} cannot build the bundle's network {component.name}: {error}",
            hint="the bundle may be of another version of MONAI; its metadata says which",
        ) from None


def load_weights(bundle: Bundle, network: Any, *, is_trusted: bool) -> None:
    """Fill a network from ``models/model.pt``.

    Raises:
        ModelError: a damaged file, one with pickled code in it, or weights of another network.
    """
    torch = require("torch", extra="monai", purpose=_PURPOSE)
    content = bundle.read(WEIGHTS)
    _check_whole(content, bundle)
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=not is_trusted)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise _damaged(bundle, error) from None
        raise needs_trust(
            f"{WEIGHTS} of the bundle {bundle.name!r} holds more than weights (pickled objects,"
            " which run code when they are loaded)"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise _damaged(bundle, error) from None
    state = _state_of(loaded, bundle)
    _check_state(state, network.state_dict(), bundle)
    network.load_state_dict(state)


def load_script(bundle: Bundle) -> Any:
    """The TorchScript network of a trusted bundle.

    Raises:
        ModelError: a file that is none.
    """
    torch = require("torch", extra="monai", purpose=_PURPOSE)
    try:
        return torch.jit.load(io.BytesIO(bundle.read(SCRIPT)), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise _damaged(bundle, error, name=SCRIPT) from None


def _check_whole(content: bytes, bundle: Bundle) -> None:
    """Say plainly what is often wrong with a file of weights."""
    if content.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{WEIGHTS} of the bundle {bundle.name!r} is a Git LFS pointer, not the weights",
            hint="fetch the file itself: git lfs pull, or download the bundle as a zip",
        )
    if not content.startswith((b"PK", b"\x80")):
        raise _damaged(bundle, f"its {len(content):,} bytes are no file of PyTorch")
    if content.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(content)):
        raise _damaged(bundle, f"it ends early, after {len(content):,} bytes")


def _damaged(bundle: Bundle, why: object, *, name: str = WEIGHTS) -> ModelError:
    text = str(why).splitlines()[0][:200] if str(why) else type(why).__name__
    return ModelError(
        f"{name} of the bundle {bundle.name!r} is damaged: {text}", hint="get the bundle again"
    )


def _state_of(loaded: Any, bundle: Bundle) -> dict[str, Any]:
    """The state dict in what was loaded, however it is wrapped."""
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    whole: Any = loaded
    if hasattr(whole, "state_dict"):
        loaded = whole.state_dict()  # a whole module, which only a trusted file can hold
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ModelError(
            f"{WEIGHTS} of the bundle {bundle.name!r} holds a {type(loaded).__name__}, not weights"
            " by name",
            hint="get the bundle again",
        )
    return {name.removeprefix("module."): value for name, value in loaded.items()}


def _check_state(state: Mapping[str, Any], expected: Mapping[str, Any], bundle: Bundle) -> None:
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    wrong = sorted(
        name
        for name in set(state) & set(expected)
        if tuple(getattr(state[name], "shape", ())) != tuple(expected[name].shape)
    )
    facts = [
        f"{kind}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("other shape", wrong))
        if names
    ]
    if facts:
        raise ModelError(
            f"{WEIGHTS} does not hold the weights of the network that the bundle {bundle.name!r}"
            f" names ({'; '.join(facts)})",
            hint="its configuration and its weights are of different versions: get it again",
            details={"missing": missing, "unknown": unknown, "shape": wrong},
        )


def _version() -> str:
    return str(require("monai", extra="monai", purpose=_PURPOSE).__version__)


def run_failed(error: Exception) -> EngineError:
    """The error of trusted code that failed on its own."""
    text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return EngineError(
        f"the bundle's own code failed: {type(error).__name__}: {text}",
        hint="it ran as it came (--trust); ask whoever made the bundle",
    )
