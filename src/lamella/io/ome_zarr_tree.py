"""Zarr hierarchies as they lie in a folder or a zip archive: documents first, arrays on demand.

Metadata is read here, as JSON, so that every oddity of it is one clear error; zarr opens arrays
only. Zarr 2 (``.zgroup``, ``.zarray``, ``.zattrs``) and zarr 3 (``zarr.json``) look alike from
outside, and folders without metadata inside a hierarchy count as groups.
"""

import json
import posixpath
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError, LamellaError, UnreadableFileError
from lamella.io.format import storage_errors
from lamella.volume.source import FunctionArray

__all__ = ["METADATA_FILES", "Node", "Tree", "foreign_errors", "is_hierarchy", "open_tree"]

METADATA_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_COUNT_UP_TO = 20_000
"""Most chunks that are looked for one by one."""
_CHUNK_BYTES = 256 * 2**20

# What zarr, numcodecs, zipfile, json and the decompressors raise for damaged content.
_FOREIGN = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    EOFError,
    ImportError,
    BufferError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    zlib.error,
    struct.error,
    zipfile.BadZipFile,
)


@contextmanager
def foreign_errors(what: str, hint: str | None = None) -> Iterator[None]:
    """Turn other libraries' errors into one of ours.

    Raises:
        UnreadableFileError: saying what cannot be read, and why in one line.
    """
    try:
        yield
    except LamellaError:
        raise
    except _FOREIGN as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableFileError(
            f"{what} cannot be read: {reason}",
            hint=hint or "the store may be damaged or incomplete; copy or download it again",
        ) from error


@dataclass(frozen=True, slots=True)
class Node:
    """A group or an array of a hierarchy, by its documents.

    Args:
        path: inside the tree, with slashes; empty for the root.
        kind: array or group.
        zarr_format: 2 or 3.
        attributes: the user's attributes.
        is_implicit: a folder that has no document of its own.
    """

    path: str
    kind: Literal["group", "array"]
    zarr_format: Literal[2, 3]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_implicit: bool = False

    @property
    def ome(self) -> Mapping[str, Any]:
        """OME-NGFF's attributes: under ``ome`` since 0.5, at the top before."""
        nested = self.attributes.get("ome")
        return nested if isinstance(nested, Mapping) else self.attributes


class Tree:
    """A hierarchy in a folder (or, in :class:`_ZipTree`, in an archive)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = ""

    def address(self, path: str) -> Path:
        """Where a node lies; in an archive, the archive's path with the member's after it."""
        return self.path / self._root / path

    def read_text(self, name: str) -> str | None:
        """The text of a small file, or None where there is none."""
        try:
            return (self.path / name).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder, sorted as people count (2 before 10)."""
        folder = self.path / path
        if not folder.is_dir():
            return []
        return sorted((p.name for p in folder.iterdir() if p.is_dir()), key=_natural)

    def exists(self, path: str) -> bool:
        """Whether there is a folder."""
        return (self.path / path).is_dir()

    def store(self) -> Any:
        """The zarr store of this tree."""
        from zarr.storage import LocalStore

        return LocalStore(self.path, read_only=True)

    def count_files(self, path: str) -> int:
        """How many files that are no documents lie under an array."""
        folder = self.path / path
        return sum(
            1
            for p in folder.rglob("*")
            if p.name not in METADATA_FILES and not p.name.endswith(".partial") and p.is_file()
        )

    def node(self, path: str) -> Node | None:
        """The node at a path, or None where there is nothing.

        Raises:
            UnreadableFileError: for a document that is damaged.
        """
        path = path.strip("/")
        document = self._document(posixpath.join(path, "zarr.json"))
        if document is not None:
            kind = document.get("node_type")
            if kind not in ("group", "array") or document.get("zarr_format") != 3:
                raise UnreadableFileError(
                    f"{self._name(path)}: zarr.json is of no group or array (node_type {kind!r},"
                    f" zarr_format {document.get('zarr_format')!r})",
                    hint="the store may be damaged, or of another version of zarr",
                )
            attributes = document.get("attributes")
            return Node(path, kind, 3, attributes if isinstance(attributes, dict) else {})
        attributes = self._document(posixpath.join(path, ".zattrs"))
        for kind, name in (("array", ".zarray"), ("group", ".zgroup")):
            if self._document(posixpath.join(path, name)) is not None:
                return Node(path, kind, 2, attributes or {})  # type: ignore[arg-type]
        if attributes is not None:
            return Node(path, "group", 2, attributes)
        return Node(path, "group", 3, is_implicit=True) if self.exists(path) else None

    def array(self, path: str) -> Any:
        """Open an array.

        Returns:
            A ``zarr.Array``, read only.

        Raises:
            UnreadableFileError: when there is none or its document is damaged.
            InputError: when its elements are no numbers.
        """
        import zarr

        node = self.node(path)
        if node is None or node.kind != "array":
            raise UnreadableFileError(
                f"there is no array {path!r} in {self.path}",
                hint="the store is incomplete; copy or download it again",
            )
        with (
            warnings.catch_warnings(),
            storage_errors(self.path),
            foreign_errors(self._name(path)),
        ):
            warnings.simplefilter("ignore")
            array = zarr.open_array(
                store=self.store(),
                path=posixpath.join(self._root, path),
                mode="r",
                zarr_format=node.zarr_format,
            )
            # StringDType and the like have a numpy dtype that is not of numbers.
            dtype = np.dtype(array.dtype)
            n_chunk = int(np.prod([int(c) for c in array.chunks], dtype=np.float64))
            n_array = int(np.prod([int(n) for n in array.shape], dtype=np.float64))
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise InputError(
                f"{self._name(path)} holds elements of type {dtype}, not integers or floats",
                hint="choose an array of numbers with --dataset",
            )
        if n_array == 0 or min(array.shape) < 1:
            raise UnreadableFileError(
                f"{self._name(path)} has the shape {tuple(array.shape)}: there are no voxels",
                hint="choose another array with --dataset",
            )
        if n_chunk * dtype.itemsize > max(_CHUNK_BYTES, 8 * n_array * dtype.itemsize):
            raise UnreadableFileError(
                f"{self._name(path)} claims chunks of shape {tuple(array.chunks)} for an array of"
                f" shape {tuple(array.shape)}",
                hint="the header may be damaged",
            )
        return array

    def lazy(self, array: Any, keep: tuple[int, ...], path: str) -> FunctionArray:
        """An array as a lazy one: axes reordered, native bytes, errors of ours.

        Args:
            array: from :meth:`array`.
            keep: positions of the array's axes in the order wanted; others, of length 1, are
                dropped.
            path: for messages.
        """
        dropped = tuple(axis for axis in range(array.ndim) if axis not in keep)

        def read(slices: tuple[slice, ...]) -> NDArray[Any]:
            full = [slice(0, 1)] * array.ndim
            for axis, part in zip(keep, slices, strict=True):
                full[axis] = part
            with storage_errors(self.path), foreign_errors(f"{self._name(path)}: a chunk"):
                region = np.asarray(array[tuple(full)])
            shape = tuple(part.stop - part.start for part in slices)
            return region.transpose(keep + dropped).reshape(shape)

        return FunctionArray([array.shape[axis] for axis in keep], np.dtype(array.dtype), read)

    def n_missing_chunks(self, array: Any, path: str) -> tuple[int, int] | None:
        """How many stored units (chunks or shards) are absent, and how many there should be.

        Returns:
            None when there are too many to look for.
        """
        unit = array.shards or array.chunks
        expected = int(
            np.prod([-(-n // u) for n, u in zip(array.shape, unit, strict=True)], dtype=np.float64)
        )
        if expected > _COUNT_UP_TO:
            return None
        with storage_errors(self.path):
            return max(0, expected - self.count_files(path)), expected

    def _document(self, name: str) -> dict[str, Any] | None:
        with storage_errors(self.path), foreign_errors(f"{self.path}: {name}"):
            text = self.read_text(name)
            document = None if text is None else json.loads(text)
        if document is None or isinstance(document, dict):
            return document
        raise UnreadableFileError(
            f"{self.path}: {name} is no JSON object", hint="the store may be damaged; copy it again"
        )

    def _name(self, path: str) -> str:
        return f"{self.path}/{path}" if path else str(self.path)


class _ZipTree(Tree):
    """A hierarchy in a zip archive, at its root or in its only folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with storage_errors(path), _zip_errors(path), zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        documents = [name for name in names if posixpath.basename(name) in METADATA_FILES]
        roots = [posixpath.dirname(name) for name in documents]
        self._root = min(roots, key=lambda root: (root.count("/") + bool(root), root), default="")
        prefix = f"{self._root}/" if self._root else ""
        self._names = frozenset(name[len(prefix) :] for name in names if name.startswith(prefix))
        self.has_documents = bool(documents)

    def read_text(self, name: str) -> str | None:
        """The text of a member, or None where there is none."""
        if name not in self._names:
            return None
        with _zip_errors(self.path), zipfile.ZipFile(self.path) as archive:
            return archive.read(posixpath.join(self._root, name)).decode("utf-8")

    def folders(self, path: str) -> list[str]:
        """Names of the folders in a folder."""
        prefix = f"{path}/" if path else ""
        rest = (name[len(prefix) :] for name in self._names if name.startswith(prefix))
        return sorted({name.split("/", 1)[0] for name in rest if "/" in name}, key=_natural)

    def exists(self, path: str) -> bool:
        """Whether any member lies under a folder."""
        return not path or any(name.startswith(f"{path}/") for name in self._names)

    def store(self) -> Any:
        """The zarr store of this archive; its lock makes it safe for threads."""
        from zarr.storage import ZipStore

        return ZipStore(self.path, mode="r", read_only=True)

    def count_files(self, path: str) -> int:
        """How many members that are no documents lie under an array."""
        prefix = f"{path}/" if path else ""
        return sum(
            1
            for name in self._names
            if name.startswith(prefix) and posixpath.basename(name) not in METADATA_FILES
        )


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    with foreign_errors(
        f"the zip archive {path}", "the archive may be damaged or encrypted; make it again"
    ):
        yield


def open_tree(path: Path) -> Tree:
    """The hierarchy at a folder or in a zip archive.

    Raises:
        UnreadableFileError: for an archive that is damaged or holds no zarr.
    """
    if path.is_dir():
        return Tree(path)
    tree = _ZipTree(path)
    if not tree.has_documents:
        raise UnreadableFileError(
            f"{path} is a zip archive without a zarr hierarchy in it",
            hint="unpack it and open what is inside",
        )
    return tree


def is_hierarchy(path: Path) -> bool:
    """Whether a folder has a zarr document of its own."""
    return any((path / name).is_file() for name in METADATA_FILES)


def _natural(name: str) -> tuple[Any, ...]:
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)
