"""The folders and arrays of a data set, on a disk or in a bucket, with their geometry.

Any address that fsspec knows will do: a path, ``s3://janelia-cosem-datasets`` (read anonymously
where no credentials are set), ``memory://`` in tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lamella.core.errors import GeometryError, MissingPathError, UnreadableFileError
from lamella.core.optional import require
from lamella.training.cellmap.grid import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.volume.source import LazyArray

__all__ = ["Level", "Tree"]

_NM = {
    "nanometer": 1.0, "nm": 1.0, "angstrom": 0.1, "micrometer": 1000.0, "um": 1000.0,
    "millimeter": 1e6, "meter": 1e9,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """One array of a multiscale pyramid.

    Attributes:
        path: from the root of the tree.
        grid: where its voxels lie, nm.
        dtype: as NumPy writes it.
        chunks: voxels of a chunk, (z, y, x).
    """

    path: str
    grid: Grid
    dtype: str
    chunks: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Tree:
    """Folders below one address.

    Attributes:
        address: as the user wrote it.
        base: the same without its protocol.
        system: an fsspec file system.
    """

    address: str
    base: str
    system: Any = field(repr=False)

    @classmethod
    def open(cls, address: str) -> Tree:
        """Open a path or address.

        Raises:
            MissingPathError: nothing is there.
            MissingDependencyError: the protocol needs a package that is not installed.
        """
        fsspec = require("fsspec", extra="train", purpose="reading CellMap data")
        options = {"anon": True} if address.startswith("s3://") else {}
        try:
            system, base = fsspec.core.url_to_fs(address, **options)
        except ImportError as error:
            from lamella.core.errors import MissingDependencyError

            raise MissingDependencyError(
                f"{address} needs a package that is not installed: {error}",
                hint='pip install "lamella[s3]"',
            ) from None
        except ValueError as error:
            raise MissingPathError(
                f"{address} is no address that can be opened: {error}", hint="give a folder"
            ) from None
        tree = cls(address, base.rstrip("/"), system)
        if not system.isdir(tree.base):
            raise MissingPathError(f"there is no folder at {address}", hint="check the path")
        return tree

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders in a folder, sorted; none where there is no such folder."""
        try:
            entries = self.system.ls(self._full(path), detail=True)
        except FileNotFoundError:
            return []
        names = [
            entry["name"].rstrip("/").rsplit("/", 1)[-1]
            for entry in entries
            if entry["type"] == "directory"
        ]
        return sorted(name for name in names if not name.startswith("."))

    @property
    def is_remote(self) -> bool:
        """Whether every look costs a journey over the network."""
        names = self.system.protocol
        return not {"file", "local", "memory"} & {*((names,) if isinstance(names, str) else names)}

    def has(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return bool(self.system.exists(self._full(path)))

    def files(self, path: str) -> set[str]:
        """Paths of all files below a folder, relative to it."""
        full = self._full(path)
        return {name.removeprefix(full).lstrip("/") for name in self.system.find(full)}

    def document(self, path: str) -> Any | None:
        """A JSON document, None where there is none.

        Raises:
            UnreadableFileError: for a file that is no JSON.
        """
        try:
            content = self.system.cat_file(self._full(path))
        except (FileNotFoundError, IsADirectoryError):
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise UnreadableFileError(
                f"{self.address}/{path} is no JSON: {error}", hint="fetch the file again"
            ) from None

    def levels(self, path: str) -> tuple[Level, ...]:
        """The levels of an OME-NGFF 0.4 multiscale group, in the order of its metadata.

        Levels that are listed but were not fetched are left out.

        Raises:
            UnreadableFileError: no multiscale metadata, or metadata of another kind.
            GeometryError: units, axes or scales that make no grid.
        """
        attributes = self.document(f"{path}/.zattrs")
        try:
            multiscale = attributes["multiscales"][0]  # type: ignore[index]
            axes = [axis["name"] for axis in multiscale["axes"]]
            units = [axis.get("unit") for axis in multiscale["axes"]]
            listed = [
                (known["path"], _transform(known, multiscale)) for known in multiscale["datasets"]
            ]
        except (KeyError, IndexError, TypeError) as error:
            raise UnreadableFileError(
                f"{self.address}/{path} has no OME-NGFF 0.4 multiscale metadata ({error!r})",
                hint="expected .zattrs with multiscales, as the challenge's data have it",
            ) from None
        if axes != ["z", "y", "x"]:
            raise GeometryError(
                f"{self.address}/{path} has the axes {axes}, expected z, y, x",
                hint="CellMap data have three axes",
            )
        factors = [self._nm(path, unit) for unit in units]
        found = []
        for name, (scale, translation) in listed:
            array = self.document(f"{path}/{name}/.zarray")
            if array is None:
                continue
            found.append(_level(f"{path}/{name}", array, factors, scale, translation))
        return tuple(found)

    def open_array(self, path: str) -> Any:
        """A zarr array, read when it is sliced; chunks that were not fetched read as the fill.

        Raises:
            UnreadableFileError: no zarr array.
        """
        import zarr
        import zarr.storage

        if self.system.protocol in ("file", ("file", "local")):
            store: Any = self._full(path)
        else:
            store = zarr.storage.FsspecStore.from_url(
                self.system.unstrip_protocol(self._full(path)),
                storage_options=dict(self.system.storage_options),
            )
        try:
            return zarr.open_array(store, mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableFileError(
                f"{self.address}/{path} cannot be opened as a zarr array: {error}",
                hint="fetch it again",
            ) from None

    def open_lazy(self, path: str) -> LazyArray:
        """A zarr array for many small reads: decoded by tensorstore where that reaches it.

        Raises:
            UnreadableFileError: no zarr array.
        """
        names = self.system.protocol
        protocols = {names} if isinstance(names, str) else set(names)
        if not protocols & {"file", "local", "s3"}:
            return self.open_array(path)
        from lamella.training.patch_reader import PatchReader

        head = "s3://" if "s3" in protocols else ""
        return PatchReader(f"{head}{self._full(path)}")

    def missing_chunks(self, level: Level) -> set[tuple[int, ...]]:
        """Chunks of an array that have no file: of raw data, those that were never fetched."""
        array = self.document(f"{level.path}/.zarray") or {}
        separator = array.get("dimension_separator", ".")
        counts = [-(-n // c) for n, c in zip(level.grid.shape, level.chunks, strict=True)]
        every = {
            (z, y, x) for z in range(counts[0]) for y in range(counts[1]) for x in range(counts[2])
        }
        there = set()
        for name in self.files(level.path):
            parts = name.split(separator)
            if len(parts) == len(counts) and all(part.isdigit() for part in parts):
                there.add(tuple(map(int, parts)))
        return every - there

    def _full(self, path: str) -> str:
        return f"{self.base}/{path}".rstrip("/") if path else self.base

    def _nm(self, path: str, unit: str | None) -> float:
        try:
            return _NM[unit or ""]
        except KeyError:
            raise GeometryError(
                f"{self.address}/{path} gives lengths in {unit!r}, expected nanometer",
                hint="correct the unit of the axes in .zattrs",
            ) from None


def _transform(dataset: Mapping[str, Any], multiscale: Mapping[str, Any]) -> tuple[Any, Any]:
    """Scale and translation of a level, those of the whole pyramid applied after its own."""
    scale, translation = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
    steps = [
        *dataset["coordinateTransformations"],
        *multiscale.get("coordinateTransformations", ()),
    ]
    for step in steps:
        if step["type"] == "scale":
            scale = [a * float(b) for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * float(b) for a, b in zip(translation, step["scale"], strict=True)]
        elif step["type"] == "translation":
            translation = [
                a + float(b) for a, b in zip(translation, step["translation"], strict=True)
            ]
        elif step["type"] != "identity":
            raise KeyError(step["type"])
    return scale, translation


def _level(
    path: str, array: Mapping[str, Any], factors: list[float], scale: Any, translation: Any
) -> Level:
    shape = tuple(int(n) for n in array["shape"])
    if len(shape) != 3:
        raise GeometryError(f"{path} has shape {shape}, expected three axes")
    spacing = tuple(f * s for f, s in zip(factors, scale, strict=True))
    origin = tuple(f * t for f, t in zip(factors, translation, strict=True))
    grid = Grid(
        (shape[0], shape[1], shape[2]),
        (spacing[0], spacing[1], spacing[2]),
        (origin[0], origin[1], origin[2]),
    )
    chunks = tuple(int(n) for n in array["chunks"])
    return Level(path, grid, str(array["dtype"]), (chunks[0], chunks[1], chunks[2]))
