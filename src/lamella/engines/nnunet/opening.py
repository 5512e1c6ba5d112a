"""Checkpoints become one runtime: all folds, averaged, on OpenVINO or PyTorch.

On the CPU every network is converted for OpenVINO in this process; one tile of the input goes
through both, and PyTorch takes over, aloud, where the two differ or a network does not convert.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import DeviceMemoryError, ModelError
from lamella.core.optional import import_openvino, require
from lamella.engines.nnunet.checkpoint import Checkpoint, read_checkpoint
from lamella.engines.nnunet.network import build_network, n_inputs
from lamella.inference.openvino_runtime import (
    OpenVinoOptions,
    OpenVinoRuntime,
    not_converted,
    usable_precision,
)
from lamella.inference.runtime import Mirrored, Runtime, Spread, as_pipelined, compare
from lamella.volume.volume import Note

if TYPE_CHECKING:
    from lamella.engines.nnunet.classes import ClassRule
    from lamella.engines.nnunet.settings import Chosen, Settings
    from lamella.inference.runtime import Pending

    Sample = Callable[[], NDArray[np.float32]]

__all__ = ["Averaged", "Opened", "open_runtime"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A runtime and how far it was checked.

    Attributes:
        runtime: ready to run batches.
        version: of the library behind it.
        check: how it was compared with PyTorch, in words, for the manifest.
        has_spread: whether its last output is the spread over mirrored copies.
        notes: what the user must know.
    """

    runtime: Runtime
    version: str
    check: str
    has_spread: bool
    notes: tuple[Note, ...] = ()


def open_runtime(
    chosen: Chosen, rule: ClassRule, settings: Settings, sample: Sample, *, wants_spread: bool
) -> Opened:
    """Open the networks of all folds of a configuration.

    Args:
        chosen: configuration and folds.
        rule: what the outputs mean.
        settings: device, runtime, precision, mirroring.
        sample: gives a tile of the input, for the comparison.
        wants_spread: leave the spread over mirrored copies as one more output.

    Raises:
        ModelError: a checkpoint that cannot be read or does not fit.
        DeviceError: when the device is not there.
    """
    folder = chosen.folder
    shape = (1, n_inputs(folder, rule), *(int(n) for n in folder.settings["patch_size"]))
    networks: list[Any] = []
    first: Checkpoint | None = None
    for fold in chosen.folds:
        node = folder.checkpoint(fold, settings.checkpoint)
        known = read_checkpoint(node, is_trusted=settings.is_trusted)
        networks.append(build_network(folder, rule, known, is_trusted=settings.is_trusted))
        first = first or replace(known, weights={})
    assert first is not None, "a configuration has at least one fold"
    axes = tuple(2 + axis for axis in first.mirror_axes) if settings.mirrors else ()
    notes: list[Note] = []
    if settings.mirrors and not axes:
        notes.append(
            Note("no_mirroring", "the model was trained without mirroring: --tta changes nothing")
        )
    if any(axis >= len(shape) for axis in axes):
        raise ModelError(
            f"the checkpoint mirrors axes {first.mirror_axes} of a patch of {len(shape) - 2} axes",
            hint="the checkpoint is of another configuration: copy the folder again",
        )
    has_spread = wants_spread and bool(axes)
    spread = Spread("sigmoid" if rule.has_regions else "softmax") if has_spread else None
    if settings.runtime == "torch":
        opened = _open_torch(networks, shape, axes, settings, spread)
    else:
        opened = _open_openvino(networks, shape, axes, settings, spread, sample)
    return replace(opened, has_spread=has_spread, notes=(*notes, *opened.notes))


class Averaged:
    """The mean of the logits of several networks.

    Args:
        members: opened for the same batch shape.
    """

    def __init__(self, members: Sequence[Runtime]) -> None:
        self._members = tuple(members)
        first = self._members[0]
        self.name = first.name
        self.device = first.device
        self.precision = first.precision
        self.batch_shape = first.batch_shape
        self.n_outputs = first.n_outputs

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run every network, in order, and average."""
        total = np.array(self._members[0](batch), np.float32)
        for member in self._members[1:]:
            total += member(batch)
        total *= np.float32(1.0 / len(self._members))
        return total


def _combined(members: Sequence[Runtime], axes: tuple[int, ...], spread: Spread | None) -> Runtime:
    runtime = members[0] if len(members) == 1 else Averaged(members)
    return Mirrored(runtime, axes=axes, spread=spread) if axes else runtime


# --- OpenVINO -----------------------------------------------------------------------------------


def _open_openvino(
    networks: list[Any],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    settings: Settings,
    spread: Spread | None,
    sample: Sample,
) -> Opened:
    precision, notes = usable_precision(settings.precision)
    options = OpenVinoOptions(precision=precision, n_threads=settings.n_threads)
    members: list[Runtime] = []
    check = "not compared with PyTorch"
    for index, network in enumerate(networks):
        try:
            member = OpenVinoRuntime(_converted(network, shape), shape, options)
        except (ModelError, RuntimeError, NotImplementedError, TypeError) as error:
            notes = (*notes, not_converted(error))
            return _instead(networks, shape, axes, settings, spread, notes)
        members.append(member)
        if settings.check == "never" or (index > 0 and settings.check == "auto"):
            continue
        batch = sample()
        difference = compare(member(batch), _reference(network, batch))
        check = f"compared with PyTorch fp32 on one tile: {difference}"
        if not difference.is_acceptable(precision):
            notes = (*notes, difference.as_note(precision))
            return _instead(networks, shape, axes, settings, spread, notes)
    networks.clear()  # the compiled graphs hold the weights now
    version = str(import_openvino().__version__)
    return Opened(_combined(members, axes, spread), version, check, False, notes)


def _converted(network: Any, shape: tuple[int, ...]) -> Any:
    openvino, torch = import_openvino(), require("torch", extra="nnunet", purpose="nnU-Net")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of every shape turned into a number
        # Left to itself the converter traces three times over, to check; the graph is compared with
        # the network on a tile anyway.
        traced = torch.jit.trace(network, torch.zeros(shape), check_trace=False, strict=False)
        return openvino.convert_model(traced, input=list(shape))


def _reference(network: Any, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    torch = require("torch", extra="nnunet", purpose="nnU-Net")
    with torch.inference_mode():
        logits: NDArray[np.float32] = network(torch.from_numpy(batch)).numpy()
    return logits


def _instead(
    networks: list[Any],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    settings: Settings,
    spread: Spread | None,
    notes: tuple[Note, ...],
) -> Opened:
    opened = _open_torch(networks, shape, axes, replace(settings, precision="fp32"), spread)
    return replace(opened, notes=(*notes, *opened.notes))


# --- PyTorch ------------------------------------------------------------------------------------


def _open_torch(
    networks: list[Any],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    settings: Settings,
    spread: Spread | None,
) -> Opened:
    from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

    torch = require("torch", extra="nnunet", purpose="running networks on PyTorch")
    options = TorchOptions(
        device=settings.device,
        precision=settings.precision,
        is_deterministic=settings.is_deterministic,
        n_threads=settings.n_threads if settings.device == "cpu" else None,
    )
    check = "PyTorch is the reference itself"

    def one_by_one() -> Runtime:
        members = [TorchRuntime(network, shape, options) for network in networks]
        return _combined(members, axes, spread)

    if settings.device == "cpu" or spread is not None or (len(networks) == 1 and not axes):
        runtime = one_by_one()
    else:
        # Copies and folds are averaged on the device: logits travel to the host once a tile.
        whole = TorchRuntime(_whole(torch, networks, axes), shape, options)
        runtime = _Cautious(whole, one_by_one)
    return Opened(runtime, str(torch.__version__), check, False)


def _whole(torch: Any, networks: list[Any], axes: tuple[int, ...]) -> Any:
    """A module that averages folds and mirrored copies."""
    import itertools

    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = torch.nn.ModuleList(networks)

        def forward(self, batch: Any) -> Any:
            total: Any = None
            for flip in flips:
                turned = torch.flip(batch, flip) if flip else batch
                for member in self.members:
                    logits = member(turned).float()
                    logits = torch.flip(logits, flip) if flip else logits
                    total = logits if total is None else total + logits
            return total / (len(flips) * len(self.members))

    return Whole()


class _Cautious:
    """Averages on the device until its memory runs out, then copy by copy on the host.

    nnU-Net's patch is part of the model: a smaller one would be another model. What can be spared
    is the memory for sums and for a second tile on its way.
    """

    n_in_flight = 1

    def __init__(self, whole: Runtime, one_by_one: Callable[[], Runtime]) -> None:
        self._inner = whole
        self._one_by_one: Callable[[], Runtime] | None = one_by_one
        self.name = whole.name
        self.device = whole.device
        self.precision = whole.precision
        self.batch_shape = whole.batch_shape
        self.n_outputs = whole.n_outputs
        self.on_retry: Callable[[str], None] | None = None

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run a batch."""
        return self.submit(batch)()

    def submit(self, batch: NDArray[np.float32]) -> Pending:
        """Run a batch, a second time in the sparing way if memory runs out."""
        try:
            logits = as_pipelined(self._inner).submit(batch)()
        except DeviceMemoryError:
            if self._one_by_one is None:
                raise
            self._spare()
            logits = self._inner(batch)
        return lambda: logits

    def _spare(self) -> None:
        torch = require("torch", extra="nnunet", purpose="nnU-Net")
        build, self._one_by_one = self._one_by_one, None
        assert build is not None, "asked for only once"
        torch.backends.cudnn.benchmark = False
        torch.cuda.empty_cache()
        self._inner = build()
        torch.backends.cudnn.benchmark = False  # its trials need memory of their own
        if self.on_retry is not None:
            self.on_retry(
                f"{self.device} ran out of memory; tiles are run one mirrored copy at a time and"
                " added up on the host from here on, which is slower"
            )
