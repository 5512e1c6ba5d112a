"""OME-Zarr 0.4 (zarr 2), for programs that do not read zarr 3 yet; reading is done by ome_zarr."""

from pathlib import Path

from lamella.io.format import SaveOptions
from lamella.volume.volume import Volume

__all__ = ["write"]


def write(volume: Volume, path: Path, options: SaveOptions) -> None:
    """Write OME-Zarr 0.4 (zarr 2), as a folder or (``.zip``, ``.ozx``) an archive."""
    from lamella.io.ome_zarr_write import write_image

    write_image(volume, path, options, version="0.4")
