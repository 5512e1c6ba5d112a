"""Checkpoints and post-processing of nnU-Net, read without running what may be inside them.

Both are pickles. A checkpoint is read by PyTorch's restricted unpickler, which knows tensors and
plain containers, plus the few harmless things nnU-Net's training leaves in it (numpy numbers);
``postprocessing.pkl`` by an unpickler that knows one function by name. Anything else in them is
refused, unless the user vouches for the model.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import ModelError
from lamella.core.optional import require
from lamella.engines.nnunet.folder import Node

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Checkpoint", "KeepLargest", "read_checkpoint", "read_postprocessing"]

_TRUST_HINT = "if you trust where this model comes from, run again with --trust"
_KEEP_LARGEST = (
    "nnunetv2.postprocessing.remove_connected_components",
    "remove_all_but_largest_component_from_segmentation",
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What running a network needs of a checkpoint.

    Attributes:
        weights: state of the network by name.
        trainer: class that trained it.
        configuration: which one of the plans; empty where it does not say.
        mirror_axes: spatial axes that may be mirrored, 0 first; empty where none.
    """

    weights: Mapping[str, Any]
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]


def read_checkpoint(node: Node, *, is_trusted: bool) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        node: ``checkpoint_final.pth`` or its like, on disk or in a zip.
        is_trusted: whether pickled code may run.

    Raises:
        ModelError: a truncated file, pickled code, or no checkpoint of nnU-Net v2.
    """
    content = _load(node, is_trusted=is_trusted)
    if not isinstance(content, Mapping) or "network_weights" not in content:
        kept = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else "no dict"
        raise ModelError(
            f"{node} is no checkpoint of nnU-Net v2: it holds {kept}, not 'network_weights'",
            hint="nnU-Net v1 calls them 'state_dict'; version 2 cannot run those",
        )
    arguments = content.get("init_args")
    axes = content.get("inference_allowed_mirroring_axes")
    return Checkpoint(
        weights=_plain_names(content["network_weights"]),
        trainer=str(content.get("trainer_name") or ""),
        configuration=str(arguments.get("configuration") or "")
        if isinstance(arguments, Mapping)
        else "",
        mirror_axes=tuple(int(axis) for axis in axes or ()),
    )


def _load(node: Node, *, is_trusted: bool) -> Any:
    torch = require("torch", extra="nnunet", purpose="reading nnU-Net checkpoints")
    where: dict[str, Any] = {"map_location": "cpu", "weights_only": not is_trusted}
    try:
        with torch.serialization.safe_globals(_harmless()):
            if isinstance(node, zipfile.Path):
                return torch.load(io.BytesIO(node.read_bytes()), **where)
            return _load_file(torch, node, where)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{node} holds more than weights: {_first_line(error)}",
            hint="loading it would run code that came with it; " + _TRUST_HINT,
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"{node} is truncated or damaged: {_first_line(error)}",
            hint="copy or download the model again",
        ) from error


def _load_file(torch: Any, path: Path, where: Mapping[str, Any]) -> Any:
    with path.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    # Mapped, so that the optimiser's state, as large as the weights twice over, is never read.
    return torch.load(str(path), mmap=is_zip, **where)


def _harmless() -> list[Any]:
    """Numbers of numpy, which training leaves among the losses it logs."""
    import numpy as np
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int64DType

    from_c: Any = np.float64(0).__reduce__()[0]
    rebuild: Any = np.zeros(0).__reduce__()[0]
    return [
        (from_c, "numpy.core.multiarray.scalar"),
        (from_c, "numpy._core.multiarray.scalar"),
        (rebuild, "numpy.core.multiarray._reconstruct"),
        (rebuild, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        BoolDType,
        Float32DType,
        Float64DType,
        Int64DType,
    ]


def _plain_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Names without what wrapping for several GPUs or compilation put before them."""
    plain = {}
    for name, value in weights.items():
        plain[name.removeprefix("module.").removeprefix("_orig_mod.")] = value
    return plain


# --- Post-processing ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeepLargest:
    """One step: of a mask, only the largest connected component stays.

    Attributes:
        groups: labels whose union is one mask.
        background: what the rest becomes.
    """

    groups: tuple[int, ...]
    background: int = 0


def read_postprocessing(node: Node, *, is_trusted: bool) -> tuple[KeepLargest | Callable, ...]:
    """Read the steps of a ``postprocessing.pkl``.

    Args:
        node: the file.
        is_trusted: whether functions other than nnU-Net's own may be loaded.

    Returns:
        Steps in order; other functions than nnU-Net's (label array → label array) only where
        trusted.

    Raises:
        ModelError: functions that are not known, or a damaged file.
    """
    reader = pickle.Unpickler if is_trusted else _Restricted
    try:
        functions, arguments = reader(io.BytesIO(node.read_bytes())).load()
        steps = [
            _step(function, given) for function, given in zip(functions, arguments, strict=True)
        ]
    except _RefusedError as error:
        raise ModelError(f"{node} holds {error}, which is not run", hint=_TRUST_HINT) from error
    except Exception as error:  # a damaged pickle fails in any way
        raise ModelError(
            f"{node} is damaged: {_first_line(error)}", hint="copy or download the model again"
        ) from error
    return tuple(steps)


class _RefusedError(pickle.UnpicklingError):
    pass


def _keep_largest_mark() -> None:
    """Stands for nnU-Net's own function, which is not imported."""


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == _KEEP_LARGEST:
            return _keep_largest_mark
        raise _RefusedError(f"{module}.{name}")


def _step(function: Any, given: Mapping[str, Any]) -> KeepLargest | Callable:
    is_own = function is _keep_largest_mark or (
        getattr(function, "__name__", "") == _KEEP_LARGEST[1]
    )
    if not is_own:
        return lambda labels: function(labels, **given)
    return KeepLargest(
        groups=_flat(given["labels_or_regions"]), background=int(given.get("background_label", 0))
    )


def _flat(value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple):
        return tuple(sorted({member for part in value for member in _flat(part)}))
    return (int(value),)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
