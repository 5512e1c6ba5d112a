"""Every file format, and the only room where xyz order, RAS/LPS and Ångström exist."""

from lamella.io.format import (
    FormatDescriptor,
    OpenOptions,
    Probe,
    SaveOptions,
    descriptors,
    list_contents,
    open_labels,
    open_volume,
    save_volume,
)

__all__ = [
    "FormatDescriptor",
    "OpenOptions",
    "Probe",
    "SaveOptions",
    "descriptors",
    "list_contents",
    "open_labels",
    "open_volume",
    "save_volume",
]
