"""DICOM label maps: all classes of a plane in one frame, compressed; reading is done by dicom."""

from pathlib import Path

from lamella.io.dicom_seg_write import write_segmentation
from lamella.io.format import SaveOptions
from lamella.volume.volume import Volume

__all__ = ["write"]


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write a label map segmentation (DICOM 2024), RLE-compressed unless told otherwise."""
    write_segmentation(volume, path, options, kind="LABELMAP")
