"""How a file's axes become Lamella's: named, singletons dropped, in the order t, c, z, y, x.

Examples:
    >>> import numpy as np
    >>> layout = Layout((4, 5, 6, 3), ("z", "y", "x", "c"))
    >>> str(layout.axes), layout.shape, layout.arrange(np.zeros((4, 5, 6, 3))).shape
    ('czyx', (3, 4, 5, 6), (3, 4, 5, 6))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError
from lamella.volume import Affine, Axes, FunctionArray

__all__ = ["Layout", "in_plane", "lazy_array"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Axes as a file stores them.

    Args:
        lengths: extent per stored axis, slowest first.
        letters: what each is; None for a singleton that is dropped.
    """

    lengths: tuple[int, ...]
    letters: tuple[str | None, ...]

    @property
    def axes(self) -> Axes:
        """In Lamella's order.

        Raises:
            AxesError: when two stored axes are the same, or y or x lacks.
        """
        named = [letter for letter in self.letters if letter is not None]
        if len(set(named)) != len(named):
            raise AxesError(
                f"the stored axes {''.join(named)!r} (slowest first) name one axis twice",
                hint="say what they are, for example --axes czyx",
            )
        return Axes(tuple(name for name in ("t", "c", "z", "y", "x") if name in named))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents in the order of :attr:`axes`."""
        return tuple(self.lengths[self.letters.index(name)] for name in self.axes.names)

    def renamed(self, text: str | None) -> "Layout":
        """The same stored axes under the names a user gives, in the order of :attr:`axes`.

        Args:
            text: as ``--axes``; None changes nothing.

        Raises:
            AxesError: when the number of axes differs, or an axis would become spatial whose
                spacing nobody knows.
        """
        if text is None:
            return self
        wanted, own = Axes.parse(text), self.axes
        if len(wanted) != len(own):
            raise AxesError(
                f"--axes {text} names {len(wanted)} axes, the file has {len(own)} ({own})",
                hint=f"name {len(own)} axes",
            )
        if wanted.n_spatial > own.n_spatial:
            raise AxesError(
                f"the file's axes {own} cannot be read as {text}: it has no geometry for z",
                hint="convert it to a format that can say so, or leave --axes out",
            )
        names = dict(zip(own.names, wanted.names, strict=True))
        return Layout(
            self.lengths, tuple(None if name is None else names[name] for name in self.letters)
        )

    def arrange(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A view of a stored array in the order of :attr:`axes`."""
        kept = stored[tuple(0 if name is None else slice(None) for name in self.letters)]
        named = [name for name in self.letters if name is not None]
        return kept.transpose([named.index(name) for name in self.axes.names])


def lazy_array(
    layout: Layout,
    source: Callable[[], NDArray[Any]],
    dtype: np.dtype[Any],
    convert: Callable[[NDArray[Any], np.dtype[Any]], NDArray[Any]],
) -> FunctionArray:
    """An array that takes regions out of a stored one and converts only those.

    Args:
        layout: of the stored array.
        source: gives the stored array (mapped or unpacked), when first needed.
        dtype: of the values.
        convert: stored numbers and ``dtype`` → values.
    """

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        region = layout.arrange(source())[slices]
        values = convert(region, dtype)
        # Whoever reads may write into what he got; the file and what was unpacked stay as they are.
        return values.copy() if np.may_share_memory(values, region) else values

    return FunctionArray(layout.shape, dtype, read)


def in_plane(affine: Affine) -> Affine:
    """The (y, x) part of a (z, y, x) affine whose plane does not lean.

    Raises:
        GeometryError: when the plane is oblique in the world.
    """
    direction = np.asarray(affine.direction)
    if np.any(np.abs(direction[0, 1:]) > 1e-6) or np.any(np.abs(direction[1:, 0]) > 1e-6):
        raise GeometryError(
            "the image plane lies obliquely in space and has no two-dimensional geometry",
            hint="read it as a volume of one slice",
        )
    return Affine(
        affine.spacing[1:],
        affine.origin[1:],
        tuple(tuple(row[1:]) for row in affine.direction[1:]),
        affine.frame,
    )
