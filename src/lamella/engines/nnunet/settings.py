"""A request and a model become one complete set of settings; nothing is left open after this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import AxesError, InputError, ModelError
from lamella.core.registry import nearest_names
from lamella.engines.nnunet.descriptor import NNUNET
from lamella.engines.options import resolve_options
from lamella.inference.device import choose_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.engines.nnunet.folder import TrainedFolder
    from lamella.inference.runtime import Precision
    from lamella.volume.volume import Volume
    from lamella.wire.request import SegmentRequest

__all__ = ["Chosen", "Settings", "choose", "input_spacing", "resolve"]

_PREFERRED = ("3d_fullres", "3d_cascade_fullres", "3d_lowres", "2d")
_PLAIN_IMAGES = "NaturalImage2DIO"
# What nnU-Net's readers take for the distance of slices where there are none.
_NO_SLICES = 999.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How a job is run.

    Attributes:
        step_fraction: distance of tiles as a share of the patch.
        folds: as the request names them.
        checkpoint: file name of a fold's weights.
        unit: of the plans' spacing, as asked for.
        postprocesses: whether the model's post-processing is applied.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        runtime: ``openvino`` or ``torch``.
        precision: what is computed with.
        check: whether to compare OpenVINO with PyTorch: ``auto``, ``always``, ``never``.
        n_threads: threads on the CPU, None = the runtime's choice.
        band_bytes: memory for the band.
        mirrors: average over mirrored copies.
        has_confidence: leave maps of confidence.
        has_preview: coarse pass first.
        is_deterministic: bit-identity on CUDA too.
        is_trusted: whether code that came with the model may run.
    """

    step_fraction: float
    folds: str
    checkpoint: str
    unit: str
    postprocesses: bool
    device: str
    runtime: str
    precision: Precision
    check: str
    n_threads: int | None
    band_bytes: int
    mirrors: bool
    has_confidence: bool
    has_preview: bool
    is_deterministic: bool
    is_trusted: bool

    def as_options(self) -> dict[str, Any]:
        """Names and values for the manifest."""
        return {
            "step_size": self.step_fraction,
            "checkpoint": self.checkpoint.removeprefix("checkpoint_").removesuffix(".pth"),
            "postprocess": self.postprocesses,
            "runtime": self.runtime,
            "check": self.check,
            "threads": self.n_threads,
            "band_mb": self.band_bytes >> 20,
            "tta": self.mirrors,
            "confidence": self.has_confidence,
            "preview": self.has_preview,
            "deterministic": self.is_deterministic,
            "trusted": self.is_trusted,
        }


def resolve(request: SegmentRequest, *, is_trusted: bool) -> tuple[Settings, str | None]:
    """Decide everything a request leaves open but the configuration, which is returned as named.

    Args:
        request: as the caller wrote it.
        is_trusted: whether the user vouches for the model.

    Raises:
        InputError: for options that cannot be used.
    """
    options = resolve_options(NNUNET.id, NNUNET.options, request.options)
    machine = choose_machine(request.device, str(options["runtime"]), request.precision)
    threads, configuration = options["threads"], options["configuration"]
    settings = Settings(
        step_fraction=_step(request, options["step_size"]),
        folds=str(options["folds"]),
        checkpoint=f"checkpoint_{options['checkpoint']}.pth",
        unit=str(options["unit"]),
        postprocesses=bool(options["postprocess"]),
        device=machine.device,
        runtime=machine.runtime,
        precision=machine.precision,
        check=str(options["check"]),
        n_threads=None if threads is None else int(threads),
        band_bytes=int(options["band_mb"] or 1) << 20,
        mirrors=bool(request.tta),
        has_confidence=request.confidence,
        has_preview=request.preview,
        is_deterministic=request.deterministic,
        is_trusted=is_trusted,
    )
    return settings, None if configuration is None else str(configuration)


def _step(request: SegmentRequest, given: Any) -> float:
    if given is not None and request.overlap_fraction is not None:
        raise InputError(
            "both --overlap-fraction and --option step_size say how far tiles lie apart",
            hint="give one: the step is 1 minus the overlap",
        )
    if given is not None:
        return float(given)
    return 0.5 if request.overlap_fraction is None else 1.0 - request.overlap_fraction


# --- Which of several configurations ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """A configuration to run.

    Attributes:
        folder: the configuration.
        folds: whose weights are averaged.
        previous: the first stage of a cascade, or None.
    """

    folder: TrainedFolder
    folds: tuple[str, ...]
    previous: Chosen | None = None

    @property
    def title(self) -> str:
        """Configuration and folds, for people and manifests."""
        before = "" if self.previous is None else f"{self.previous.title} -> "
        return f"{before}{self.folder.configuration} (fold {','.join(self.folds)})"


def choose(
    folders: Sequence[TrainedFolder], named: str | None, settings: Settings, volume: Volume
) -> tuple[Chosen, ...]:
    """Find the configurations to run, with their folds and first stages.

    Args:
        folders: all of the model.
        named: by the request; several joined by ``+``.
        settings: folds and checkpoint.
        volume: decides between 2d and 3d where the request does not.

    Raises:
        InputError: a configuration that is not there.
        ModelError: folds or a first stage that are missing.
        AxesError: a configuration that the volume does not fit.
    """
    names = [None] if named is None else [name.strip() for name in named.split("+")]
    picked = [_pick(folders, name, volume) for name in names]
    for folder in picked:
        _check_axes(folder, volume)
    return tuple(_with_folds(folder, folders, settings) for folder in picked)


def _pick(folders: Sequence[TrainedFolder], name: str | None, volume: Volume) -> TrainedFolder:
    if name is None:
        has_slices = "z" in volume.axes
        order = _PREFERRED if has_slices else ("2d",)
        for wanted in order:
            fitting = [folder for folder in folders if folder.configuration == wanted]
            if fitting:
                return _only(fitting, wanted)
        fitting = [folder for folder in folders if has_slices or folder.n_axes == 2]
        return _only(fitting or list(folders), "")
    fitting = [folder for folder in folders if name in (folder.name, folder.configuration)]
    if fitting:
        return _only(fitting, name)
    known = sorted({folder.configuration for folder in folders})
    near = nearest_names(name, known)
    raise InputError(
        f"the model has no configuration {name!r}; it has {', '.join(known)}",
        hint=f"did you mean {near[0]}?" if near else "see --option configuration",
    )


def _only(fitting: Sequence[TrainedFolder], name: str) -> TrainedFolder:
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"several trained models are called {name!r}" if name else "the model has several parts",
        hint="name one with --option configuration=: "
        + ", ".join(folder.name for folder in fitting),
    )


def _check_axes(folder: TrainedFolder, volume: Volume) -> None:
    if folder.n_axes == 3 and "z" not in volume.axes:
        raise AxesError(
            f"the configuration {folder.configuration!r} segments volumes (z, y, x); the input is"
            f" an image with the axes {volume.axes}",
            hint="choose a model with a 2d configuration, or open the slices as one volume",
        )
    if volume.n_channels != len(folder.channels):
        raise AxesError(
            f"the model takes {len(folder.channels)} channel(s) ({', '.join(folder.channels)}); the"
            f" input has {volume.n_channels}",
            hint="choose one with --channel, or stack channels in this order along an axis c",
        )


def _with_folds(
    folder: TrainedFolder, folders: Sequence[TrainedFolder], settings: Settings
) -> Chosen:
    previous = None
    if folder.previous is not None:
        stages = [
            other
            for other in folders
            if other.configuration == folder.previous and other.plans_name == folder.plans_name
        ]
        same = [other for other in stages if other.trainer == folder.trainer]
        if not stages:
            raise ModelError(
                f"{folder.configuration} needs the labels of {folder.previous}, which is not among"
                f" {', '.join(other.name for other in folders)}",
                hint="give the DatasetXXX folder that holds both, or export both into the zip",
            )
        previous = _with_folds((same or stages)[0], folders, settings)
    return Chosen(folder, _folds(folder, settings), previous)


def _folds(folder: TrainedFolder, settings: Settings) -> tuple[str, ...]:
    there = folder.folds(settings.checkpoint)
    numbers = tuple(fold for fold in there if fold != "all")
    if settings.folds == "auto":
        found = numbers or there
        if not found:
            raise ModelError(
                f"{folder.root} has no fold_*/{settings.checkpoint}",
                hint=_other_checkpoints(folder, settings.checkpoint)
                or "the training was not finished, or the files were not copied",
            )
        return found
    wanted = [part.strip() for part in settings.folds.replace(" ", ",").split(",") if part.strip()]
    missing = [fold for fold in wanted if fold not in there]
    if missing or not wanted:
        raise ModelError(
            f"{folder.root} has no {settings.checkpoint} of fold {', '.join(missing) or 'none'};"
            f" it has fold {', '.join(there) or 'none'}",
            hint="choose among these with --option folds=, or leave it out",
        )
    return tuple(dict.fromkeys(wanted))


def _other_checkpoints(folder: TrainedFolder, checkpoint: str) -> str:
    other = "best" if "final" in checkpoint else "final"
    folds = folder.folds(f"checkpoint_{other}.pth")
    return f"checkpoint_{other}.pth is there: --option checkpoint={other}" if folds else ""


# --- Spacing ------------------------------------------------------------------------------------


def input_spacing(
    folder: TrainedFolder, volume: Volume, unit: str
) -> tuple[tuple[float, float, float], str]:
    """Spacing of the input, (z, y, x), in the unit in which the model's images gave theirs.

    nnU-Net knows no units: it compares the numbers of the files it was trained on. These are mm in
    NIfTI and its kin. ``dataset.json`` may say another unit (``lamella dataset export`` writes
    it), and models of plain images (png, bmp, tif) count in pixels.

    Args:
        folder: the model.
        volume: the input.
        unit: as asked for, ``auto`` or a unit.

    Returns:
        The spacing, and the unit used.

    Raises:
        InputError: a spacing that is needed and not known.
    """
    if unit == "auto":
        named = folder.dataset.get("lamella_spacing_unit")
        plain = folder.plans.get("image_reader_writer") == _PLAIN_IMAGES
        unit = str(named) if named else "voxel" if plain else "mm"
    n = len(volume.spatial_shape)
    if unit == "voxel":
        values = (1.0,) * n
    elif not volume.spacing.is_calibrated:
        raise InputError(
            f"the input has no known spacing, and the model was trained at one (in {unit})",
            hint="set it with --spacing z,y,x --unit U; or --option unit=voxel if the model was"
            " trained on images without one",
        )
    else:
        values = tuple(volume.spacing.to(unit).values)  # type: ignore[arg-type]
    z, y, x = (_NO_SLICES,) * (3 - n) + values
    return (z, y, x), unit
