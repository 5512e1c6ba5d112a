"""``lamella restore``: images with less noise or less blur, and a record of what was done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lamella.cli.console import format_duration
from lamella.cli.parameters import answer_options, console_of, input_options, open_options

if TYPE_CHECKING:
    from lamella.restoration.decision import RestoreOptions

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Result.")
@click.option(
    "--mode", type=click.Choice(("auto", "denoise", "deblur", "none")), default="auto",
    help="What to do; auto judges each channel and says what it saw.",
)  # fmt: skip
@click.option(
    "--method",
    type=click.Choice(("auto", "blind_spot", "non_local_means", "richardson_lucy", "cellpose3")),
    default="auto", help="How. auto: blind_spot (with PyTorch), or richardson_lucy for blur.",
)  # fmt: skip
@click.option(
    "--strength", type=click.FloatRange(0, min_open=True),
    help="Of the method, 1 = as estimated; blind_spot: share of the result.",
)  # fmt: skip
@click.option(
    "--psf-sigma", metavar="[Z,Y,]X[UNIT]",
    help="Deblur: width (sigma) of a Gaussian blur, such as 2, 0.25um or 0.6,0.2,0.2um.",
)  # fmt: skip
@click.option(
    "--psf", type=click.Path(path_type=Path), help="Deblur: image of a point (a bead), 2-D or 3-D."
)
@click.option("--model", help="cellpose3: weights of a restoration model, by path or stored id.")
@click.option(
    "--dimensions", type=click.Choice(("auto", "2", "3")), default="auto",
    help="Slice by slice or in 3-D; auto looks at depth and spacing.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of training.")
@click.option("--device", default="auto", help="For training: auto, cpu, cuda, cuda:N.")
@click.option(
    "--dtype", metavar="same|TYPE",
    help="Type of the result; float32 unless given. Integers are rounded and clipped.",
)  # fmt: skip
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of before and after.")
@click.option("--record", type=click.Path(path_type=Path), help="JSON of what was seen and done.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@input_options
@answer_options
def command(source: Path, output: Path, **words: Any) -> None:
    """Restore the image or volume INPUT and write it to the output.

    Denoising trains a small network on the image itself or averages look-alikes; deblurring undoes
    a Gaussian or a measured blur. The result lies exactly where the input lies. Use it to find
    things; measure intensities on the image as it came.
    """
    from lamella.io.format import open_volume
    from lamella.workflows.restore import RestoreJob, restore_file

    console = console_of(words)
    options = _options(words)
    volume = open_volume(source, open_options(words))
    job = RestoreJob(
        output=output,
        dtype=words["dtype"],
        overwrite=words["overwrite"],
        picture=words["picture"],
        record=words["record"],
    )
    with console.running(on_stop="nothing is written") as sink:
        record = restore_file(volume, options, job, sink=sink)
    console.answer(record, lambda: _text(record, job.picture))


def _options(words: dict[str, Any]) -> "RestoreOptions":
    from lamella.restoration.decision import RestoreOptions
    from lamella.volume.spacing import Spacing

    sigma = words["psf_sigma"]
    return RestoreOptions(
        mode=words["mode"],
        method=words["method"],
        strength=words["strength"],
        psf_sigma=None if sigma is None else Spacing.parse(sigma),
        psf=words["psf"],
        model=words["model"],
        dimensions=words["dimensions"],
        seed=words["seed"],
        device=words["device"],
    )


def _text(record: dict[str, Any], picture: Path | None) -> str:
    lines = [_channel(channel) for channel in record["channels"]]
    written = f"{record['path']} ({record['dtype']})"
    if not record["is_changed"]:
        written += ", as it came"
    lines.append(f"  written  {written}")
    if picture is not None:
        lines.append(f"  picture  {picture}")
    lines.append(f"  time     {format_duration(record['elapsed_s'])}")
    return "\n".join(lines)


def _channel(channel: dict[str, Any]) -> str:
    from lamella.restoration.decision import METHOD_TITLES

    head = f"{channel['channel']}: " if channel["channel"] else ""
    lines = [f"  seen     {head}{channel['why']}"]
    if channel["action"] == "none":
        return lines[0]
    before, after = channel["quality_before"], channel["quality_after"]
    lines.append(f"  done     {channel['action']} by {METHOD_TITLES[channel['method']]}")
    for name, words in (
        ("contrast_to_noise", "contrast to noise"),
        ("noise_sigma", "noise"),
        ("sharpness", "sharpness"),
        ("blur_sigma", "blur (pixels)"),
    ):
        lines.append(f"             {words:<18} {_number(before[name])} -> {_number(after[name])}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "hidden by noise" if value is None else f"{value:.3g}"
