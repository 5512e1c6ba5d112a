"""``lamella quality``: how noisy and how blurred images are, in numbers that mean what they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import table
from lamella.cli.failure import EXIT_INPUT
from lamella.cli.parameters import answer_options, console_of, input_options, open_options
from lamella.core.errors import LamellaError

if TYPE_CHECKING:
    from lamella.core.progress import ProgressSink
    from lamella.io.format import OpenOptions
    from lamella.restoration.quality import Quality

__all__ = ["command"]

_SHOWN_SLICES = 8


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@input_options
@click.option("--slices", is_flag=True, help="A row for every slice of a volume, not the bad ones.")
@click.option(
    "--picture", type=click.Path(path_type=Path),
    help="PNG of spectrum, noise and slices; for one input.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the picture if it is there.")
@answer_options
def command(
    inputs: Sequence[Path], *, slices: bool, picture: Path | None, overwrite: bool, **words: Any
) -> int:
    """Judge the quality of images and volumes: clean, noisy or blurred, with the reasons.

    Noise is read from a residual that is blind to structure, sharpness from the spectrum with the
    noise taken off: neither changes with brightness or gain. The common "SNR" (mean over standard
    deviation) and variance of the Laplacian are shown too; they mislead.
    """
    from lamella.core.errors import InputError, OutputExistsError

    console = console_of(words)
    options = open_options(words)
    if picture is not None and len(inputs) > 1:
        raise InputError("--picture shows one input", hint="judge the files one by one")
    if picture is not None and picture.exists() and not overwrite:
        raise OutputExistsError(f"{picture} is already there", hint="use --overwrite")
    found: list[tuple[Path, str, Quality]] = []
    problems: list[tuple[Path, LamellaError]] = []
    with console.running() as sink:
        for path in inputs:
            try:
                found += [(path, name, one) for name, one in _judge(path, options, sink)]
            except LamellaError as error:
                if len(inputs) == 1:
                    raise
                problems.append((path, error))
                console.warn(f"{path}: {error.message}")
    if picture is not None:
        from lamella.restoration.quality_picture import draw_quality
        from lamella.workflows.run_folder import write_bytes

        write_bytes(picture, draw_quality(found[0][2], title=found[0][0].name))
    document: dict[str, Any] = {
        "images": [
            {"path": str(path), "channel": name, **one.to_dict()} for path, name, one in found
        ]
    }
    if problems:
        document["problems"] = [
            {"path": str(path), "code": error.code, "message": error.message, "hint": error.hint}
            for path, error in problems
        ]
    console.answer(document, lambda: _text(found, all_slices=slices))
    return EXIT_INPUT if problems else 0


def _judge(path: Path, options: "OpenOptions", sink: "ProgressSink") -> list[tuple[str, "Quality"]]:
    from lamella.io.format import open_volume
    from lamella.restoration.quality import measure_quality
    from lamella.restoration.source import check_restorable, iter_channels

    volume = open_volume(path, options)
    check_restorable(volume, what="judged")
    return [(name, measure_quality(one, sink=sink)) for name, one in iter_channels(volume)]


def _text(found: Sequence[tuple[Path, str, "Quality"]], *, all_slices: bool) -> str:
    if len(found) == 1 and not all_slices:
        return _single(*found[0])
    rows = [
        (
            path.name + (f" [{name}]" if name else ""),
            one.verdict,
            f"{one.contrast_to_noise:.3g}",
            _noise(one),
            f"{one.signal:.3g}",
            f"{one.sharpness:.3g}",
            _blur(one),
            len(one.bad_slices) if one.slices else "",
        )
        for path, name, one in found
    ]
    heads = (
        "image", "verdict", "contrast/noise", "noise", "signal", "sharpness", "blur", "bad slices",
    )  # fmt: skip
    text = table(rows, heads)
    if all_slices:
        for path, name, one in found:
            if one.slices:
                text += f"\n\n{path.name}{f' [{name}]' if name else ''}\n{_slices(one, every=True)}"
    return text


def _single(path: Path, name: str, one: "Quality") -> str:
    rows = [
        ("image", path.name + (f" [{name}]" if name else "")),
        ("verdict", one.verdict),
        ("because", one.reason),
        ("noise", _noise(one)),
        ("signal", f"{one.signal:.4g} (p99 - p1 without the noise's share)"),
        ("contrast to noise", f"{one.contrast_to_noise:.3g}"),
        ("sharpness", _sharpness(one)),
        ("blur", _blur(one)),
        ("finest visible", _finest(one)),
        ("looked at", one.looked_at),
        ("mean / std", f"{one.mean_over_std:.3g}   misleads: {_misleads('mean_over_std')}"),
        (
            "Laplacian variance",
            f"{one.laplacian_variance:.4g}   misleads: {_misleads('laplacian_variance')}",
        ),
    ]
    if one.slices:
        rows.append(("slices", f"{len(one.slices)}, {len(one.bad_slices)} odd"))
    width = max(len(head) for head, _ in rows)
    text = "\n".join(f"  {head.ljust(width)}  {value}" for head, value in rows)
    return f"{text}\n\n{_slices(one, every=False)}" if one.bad_slices else text


def _slices(one: "Quality", *, every: bool) -> str:
    chosen = one.slices if every else one.bad_slices[:_SHOWN_SLICES]
    rows = [
        (s.z, f"{s.noise_sigma:.3g}", f"{s.signal:.3g}", f"{s.sharpness:.3g}", f"{s.mean:.4g}",
         ", ".join(s.flags))
        for s in chosen
    ]  # fmt: skip
    text = table(rows, ("slice", "noise", "signal", "sharpness", "mean", "odd"))
    more = 0 if every else len(one.bad_slices) - len(chosen)
    return f"{text}\n  and {more} more (--slices lists all)" if more else text


def _noise(one: "Quality") -> str:
    if not one.noise_gain:
        return f"{one.noise_sigma:.3g}"
    return f"{one.noise_dark:.3g} where dark, {one.noise_bright:.3g} where bright"


def _sharpness(one: "Quality") -> str:
    parts = [
        f"{axis} {value:.3g}"
        for axis, value in zip("zyx", one.sharpness_zyx, strict=True)
        if value is not None
    ]
    return f"{one.sharpness:.3g} of the energy in detail finer than 10 pixels ({', '.join(parts)})"


def _blur(one: "Quality") -> str:
    if one.blur_sigma is None:
        return "hidden by noise"
    text = f"{one.blur_sigma:.2f} px"
    if one.unit != "voxel" and one.blur_sigma_physical is not None:
        text += f" = {one.blur_sigma_physical:.3g} {one.unit}"
    return text


def _finest(one: "Quality") -> str:
    if one.cutoff <= 0:
        return "nothing stands above the noise"
    return f"{1 / one.cutoff:.2g} pixels ({one.cutoff:.3g} cycles per pixel)"


def _misleads(name: str) -> str:
    from lamella.restoration.quality import MISLEADING

    return MISLEADING[name]
