"""``lamella simulate``: tomograms and nuclei whose every voxel is known."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import Console
from lamella.cli.parameters import answer_options, console_of, parse_integers, stack_options
from lamella.core.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume

__all__ = ["command", "reference_path"]

_DOUBLE_SUFFIXES = (".ome.zarr", ".ome.tif", ".ome.tiff", ".nii.gz", ".mrc.gz", ".mrc.bz2")


@click.group()
def command() -> None:
    """Make tomograms or nuclei with known labels, to try things on and to score models with.

    The reference labels are written beside OUT: x.mrc gets x_labels.mrc.
    """


def _output_options(function: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option(
            "-o", "--output", "out", required=True, type=click.Path(path_type=Path),
            help="File to write; its suffix says the format.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Same seed and options, same voxels."),
        click.option("--overwrite", is_flag=True, help="Replace what is there."),
        answer_options,
    )  # fmt: skip
    return stack_options(options, function)


@command.command("tomogram")
@_output_options
@click.option(
    "--shape", default="64,128,128", show_default=True, metavar="Z,Y,X", help="Voxels per axis."
)
@click.option(
    "--spacing",
    "spacing_nm",
    type=float,
    default=1.0,
    show_default=True,
    metavar="NM",
    help="Distance of voxel centres in nm.",
)
@click.option(
    "--snr",
    type=float,
    default=0.2,
    show_default=True,
    help="Variance of the signal over that of the noise.",
)
@click.option("--no-noise", is_flag=True, help="Leave the noise out.")
@click.option(
    "--tilt-range",
    default="60",
    show_default=True,
    metavar="MIN,MAX",
    help="Tilts in degrees about y; 60 means -60,60, and 90 no missing wedge.",
)
@click.option(
    "--defocus",
    "defocus_um",
    type=float,
    default=3.0,
    show_default=True,
    metavar="UM",
    help="Underfocus in um.",
)
@click.option(
    "--voltage",
    "voltage_kv",
    type=float,
    default=300.0,
    show_default=True,
    metavar="KV",
    help="Acceleration voltage in kV.",
)
@click.option(
    "--phase-flip",
    "is_phase_flipped",
    is_flag=True,
    help="Correct the signs of the contrast transfer.",
)
@click.option(
    "--membranes",
    "membrane_density",
    type=float,
    default=1.0,
    show_default=True,
    help="How many vesicles, sheets and tubules, relative.",
)
@click.option(
    "--particles",
    "particle_density",
    type=float,
    default=1.0,
    show_default=True,
    help="How many ribosome-like particles, relative.",
)
@click.option(
    "--microtubules",
    "microtubule_density",
    type=float,
    default=1.0,
    show_default=True,
    help="How many microtubules, relative.",
)
@click.option(
    "--crowding",
    "solute_density",
    type=float,
    default=1.0,
    show_default=True,
    help="How much soluble protein, relative.",
)
@click.option(
    "--double-fraction",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of vesicles and sheets with a second membrane.",
)
@click.option(
    "--vesicle-radius",
    default="12,45",
    show_default=True,
    metavar="MIN,MAX",
    help="Mean radii of vesicles in nm.",
)
@click.option(
    "--avoid-wedge/--any-direction",
    "avoids_wedge",
    default=True,
    show_default=True,
    help="Turn sheets and tubules so that the tilts can see them.",
)
@click.option("--gold", "n_gold", type=click.IntRange(min=0), default=0, help="Gold fiducials.")
@click.option("--instances", is_flag=True,
              help="Also write every object's id, as x_instances beside OUT.")  # fmt: skip
def tomogram(out: Path, shape: str, instances: bool, **words: Any) -> None:
    """Simulate a cryo-electron tomogram.

    Vesicles, sheets, tubules, ribosome-like particles and microtubules in vitreous ice, with
    contrast transfer, missing wedge and noise; protein is dark. Labels: 1 membrane, 2 particle,
    3 microtubule.
    """
    from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram

    console = console_of(words)
    seed, overwrite = words.pop("seed"), words.pop("overwrite")
    no_noise, snr = words.pop("no_noise"), words.pop("snr")
    options = TomogramOptions(
        snr=None if no_noise else snr,
        tilt_range=_tilts(words.pop("tilt_range")),
        vesicle_radius_nm=_pair(words.pop("vesicle_radius"), what="--vesicle-radius"),
        **words,
    )
    roles = ("labels", "instances") if instances else ("labels",)
    paths = _free_paths(out, roles, overwrite=overwrite)
    extents = parse_integers(shape, what="--shape") or ()
    with console.running(on_stop="nothing is written") as sink:
        sink.check()
        simulated = simulate_tomogram(extents, seed=seed, options=options)  # type: ignore[arg-type]
        documents = {"labels": simulated.to_labels()}
        if instances:
            documents["instances"] = simulated.to_labels(instances=True)
        _save(simulated.to_volume(), out, documents, paths, overwrite=overwrite)
    n_objects = int(simulated.instances.max(initial=0))
    _answer(console, simulated.to_volume(), out, paths, n_objects, seed)


@command.command("nuclei")
@_output_options
@click.option(
    "--shape",
    default="256,256",
    show_default=True,
    metavar="[Z,]Y,X",
    help="Voxels per axis, two or three axes.",
)
@click.option(
    "--number",
    "n_nuclei",
    type=click.IntRange(min=0),
    default=40,
    show_default=True,
    help="Nuclei sought; fewer where there is no room.",
)
@click.option(
    "--radius",
    "radius_um",
    type=float,
    default=5.0,
    show_default=True,
    metavar="UM",
    help="Mean radius in um.",
)
@click.option(
    "--photons",
    type=float,
    default=200.0,
    show_default=True,
    help="Photons per voxel of a mean nucleus; fewer is noisier.",
)
@click.option(
    "--snr", type=float, help="Instead of --photons: mean of a nucleus over its shot noise."
)
@click.option("--touching", "touching_fraction", type=float, default=0.3, show_default=True,
              help="Share of nuclei that touch another.")  # fmt: skip
def nuclei(out: Path, shape: str, snr: float | None, **words: Any) -> None:
    """Simulate a fluorescence image of nuclei; every nucleus has its own label."""
    from lamella.simulation.nuclei import NucleiOptions, simulate_nuclei

    console = console_of(words)
    seed, overwrite = words.pop("seed"), words.pop("overwrite")
    if snr is not None:
        if not snr > 0:
            raise InputError(f"--snr must be greater than zero, got {snr}")
        words["photons"] = snr**2  # shot noise of n photons is sqrt(n)
    options = NucleiOptions(shape=parse_integers(shape, what="--shape") or (), **words)
    paths = _free_paths(out, ("labels",), overwrite=overwrite)
    with console.running(on_stop="nothing is written") as sink:
        sink.check()
        image, labels = simulate_nuclei(options, seed=seed)
        _save(image, out, {"labels": labels}, paths, overwrite=overwrite)
    _answer(console, image, out, paths, int(labels.load().max(initial=0)), seed)


def reference_path(out: Path, role: str) -> Path:
    """Where what belongs to ``out`` lies: its name with ``_role`` before the suffix.

    Examples:
        >>> reference_path(Path("a/x.ome.zarr"), "labels").as_posix()
        'a/x_labels.ome.zarr'
    """
    name = out.name
    double = next((end for end in _DOUBLE_SUFFIXES if name.lower().endswith(end)), None)
    suffix = name[-len(double) :] if double else out.suffix
    return out.with_name(f"{name.removesuffix(suffix)}_{role}{suffix}")


def _free_paths(out: Path, roles: tuple[str, ...], *, overwrite: bool) -> dict[str, Path]:
    """The paths to write, all checked before any work is done."""
    from lamella.io.format import find_writer

    find_writer(out)
    paths = {role: reference_path(out, role) for role in roles}
    for path in (out, *paths.values()):
        if path.exists() and not overwrite:
            raise OutputExistsError(
                f"{path} is already there", hint="use --overwrite to replace it"
            )
    return paths


def _save(
    volume: "Volume",
    out: Path,
    labels: "dict[str, Labels]",
    paths: dict[str, Path],
    *,
    overwrite: bool,
) -> None:
    from lamella.io.format import SaveOptions, save_volume

    options = SaveOptions(overwrite=overwrite)
    for role, document in labels.items():
        save_volume(document, paths[role], options)
    save_volume(volume, out, options)


def _answer(
    console: Console,
    volume: "Volume",
    out: Path,
    paths: dict[str, Path],
    n_objects: int,
    seed: int,
) -> None:
    shape = " x ".join(str(extent) for extent in volume.shape)
    text = f"{out}: {shape}, {volume.spacing}, {n_objects} objects; reference: " + ", ".join(
        str(path) for path in paths.values()
    )
    document = {
        "path": str(out),
        **{f"{role}_path": str(path) for role, path in paths.items()},
        "shape": list(volume.shape),
        "spacing": {"values": list(volume.affine.spacing), "unit": volume.unit},
        "n_objects": n_objects,
        "seed": seed,
    }
    console.answer(document, text)


def _tilts(text: str) -> tuple[float, float]:
    if "," not in text:
        greatest = _number(text, what="--tilt-range")
        return (-greatest, greatest)
    return _pair(text, what="--tilt-range")


def _pair(text: str, *, what: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"{what} takes two numbers, got {text!r}", hint=f"write {what} MIN,MAX")
    return (_number(parts[0], what=what), _number(parts[1], what=what))


def _number(text: str, *, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{what}: {text!r} is not a number", hint=f"write {what} MIN,MAX"
        ) from None
