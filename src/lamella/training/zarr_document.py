"""What the document of a zarr array says, without opening the array.

Only what is needed to plan reads is taken: shape, type, chunks. Codecs, keys and fill values are
left to the library that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError, UnreadableFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.training.zarr_location import Location

__all__ = ["ArrayDocument"]


@dataclass(frozen=True, slots=True)
class ArrayDocument:
    """An array, as its metadata describe it.

    Attributes:
        zarr_format: 2 or 3.
        shape: extent per axis.
        dtype: of the elements, native-endian.
        chunks: what is decoded at once; with shards, the chunks inside them.
        shards: what lies in one file, or None where each chunk does.
    """

    zarr_format: Literal[2, 3]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None

    @classmethod
    def read(cls, location: Location) -> ArrayDocument:
        """The document at a location.

        Raises:
            UnreadableFileError: there is no array, or its document is damaged.
            InputError: elements that are no numbers, or a grid of unequal chunks.
        """
        for name, parse in (("zarr.json", _parse_v3), (".zarray", _parse_v2)):
            document = location.document(name)
            if document is None:
                continue
            try:
                found = parse(document)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                if isinstance(error, InputError):
                    raise type(error)(
                        f"{location.address}: {error.message}", hint=error.hint
                    ) from None
                raise UnreadableFileError(
                    f"{location.address}/{name} describes no array ({error!r})",
                    hint="the store may be damaged; copy or download it again",
                ) from None
            return found
        raise UnreadableFileError(
            f"there is no zarr array at {location.address}",
            hint="name the folder that holds .zarray or zarr.json, such as .../raw/s0",
        )

    def __post_init__(self) -> None:
        if self.dtype.kind not in "biuf" or self.dtype.itemsize > 8:
            raise InputError(
                f"the array holds elements of type {self.dtype}, not integers or floats",
                hint="choose an array of numbers",
            )
        units = (self.chunks, self.shards or self.chunks)
        if any(len(unit) != len(self.shape) or min(unit, default=1) < 1 for unit in units):
            raise ValueError(f"shape {self.shape} with chunks {self.chunks}")
        if min(self.shape, default=0) < 1:
            raise UnreadableFileError(
                f"the array has the shape {self.shape}: there are no voxels",
                hint="choose another array",
            )


def _parse_v2(document: Mapping[str, Any]) -> ArrayDocument:
    named = document["dtype"]
    if not isinstance(named, str):
        raise InputError(
            "the array holds records, not integers or floats", hint="choose an array of numbers"
        )
    return ArrayDocument(
        2,
        _whole(document["shape"]),
        np.dtype(named).newbyteorder("="),
        _whole(document["chunks"]),
    )


def _parse_v3(document: Mapping[str, Any]) -> ArrayDocument:
    if document.get("node_type") == "group":
        raise UnreadableFileError(
            "this is a group, not an array", hint="name one of the arrays in it, such as its s0"
        )
    if document["chunk_grid"]["name"] != "regular":
        raise InputError(
            f"the chunks make a {document['chunk_grid']['name']!r} grid, expected a regular one",
            hint="write the array again with chunks of one shape",
        )
    outer = _whole(document["chunk_grid"]["configuration"]["chunk_shape"])
    inner = next(
        (
            _whole(codec["configuration"]["chunk_shape"])
            for codec in document["codecs"]
            if codec["name"] == "sharding_indexed"
        ),
        None,
    )
    return ArrayDocument(
        3,
        _whole(document["shape"]),
        _dtype_v3(document["data_type"]),
        inner or outer,
        outer if inner else None,
    )


def _dtype_v3(named: Any) -> np.dtype[Any]:
    known = {"bool", "float16", "float32", "float64"}
    known |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
    if named not in known:
        raise InputError(
            f"the array holds elements of type {named!r}, not integers or floats",
            hint="choose an array of numbers",
        )
    return np.dtype(named)


def _whole(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list of numbers")
    return tuple(int(value) for value in values)
