"""Commands with many options list them by what they are about."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

__all__ = ["SEGMENT_SECTIONS", "SectionedCommand"]

SEGMENT_SECTIONS: Mapping[str, Sequence[str]] = {
    "What": ("model", "output", "run_dir", "name", "priority", "exports"),
    "Objects": (
        "instances", "min_size", "fill_holes", "keep_largest", "confidence", "seed_distance",
        "min_overlap_ratio", "max_distance_z", "max_centroid_distance",
    ),
    "Restoration": ("restore", "restore_method", "restore_strength", "psf_sigma", "psf"),
    "How the model runs": (
        "engine", "options", "device", "precision", "tile", "overlap_fraction", "tta",
        "deterministic", "preview", "trust",
    ),
    "How the input is read": (
        "spacing", "unit", "axes", "dataset", "series", "level", "channel", "time", "modality",
        "resample_irregular",
    ),
    "In blocks, for large volumes": (
        "block_workers", "scheduler", "cluster", "cluster_options", "block",
    ),
    "On a server": ("server", "token", "pin", "insecure"),
    "Again": ("resume", "overwrite"),
}  # fmt: skip
"""Options of a segmentation, here or on a server; a command may lack some of them."""


class SectionedCommand(click.Command):
    """A command whose help has a heading for every kind of option.

    Args:
        words: as :class:`click.Command` takes them.
        sections: heading → names of parameters, in the order in which they are shown. Names that
            the command lacks are passed over; parameters that are named nowhere come last.
        more: attributes of :class:`click.Command`.
    """

    def __init__(self, *words: Any, sections: Mapping[str, Sequence[str]], **more: Any) -> None:
        super().__init__(*words, **more)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        records = {
            parameter.name: record
            for parameter in self.get_params(ctx)
            if (record := parameter.get_help_record(ctx)) is not None
        }
        for title, names in self._sections.items():
            if found := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(found)
        with formatter.section("More"):
            formatter.write_dl(list(records.values()))
