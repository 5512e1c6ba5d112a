"""What a link needs, and what linking found: the values that pass between its steps."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError

__all__ = ["LinkOptions", "Linking"]


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """When objects of different slices are one.

    Attributes:
        min_overlap_ratio: least weight of a link, 0 to 1: IoU times the share of the smaller
            section that lies inside the larger.
        max_distance_z: slices from one to the next of an object; 2 bridges one missing slice.
            Slices without any object do not count.
        max_centroid_distance: farthest in-plane distance of the centroids of linked sections, in
            the unit of the spacing; None = twice the equivalent diameter of the larger section.
        fill_gaps: draw what is missing in bridged slices, by interpolating the shape; only where
            there is background.
    """

    min_overlap_ratio: float = 0.3
    max_distance_z: int = 2
    max_centroid_distance: float | None = None
    fill_gaps: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_overlap_ratio <= 1:
            raise InputError(
                f"min_overlap_ratio is {self.min_overlap_ratio}, expected more than 0, at most 1",
                hint="0.3 is usual; a higher one links less",
            )
        if self.max_distance_z < 1:
            raise InputError(
                f"max_distance_z is {self.max_distance_z}, expected 1 or more",
                hint="1 links neighbouring slices only, 2 bridges one missing slice",
            )
        if self.max_centroid_distance is not None and not self.max_centroid_distance > 0:
            raise InputError(
                f"max_centroid_distance is {self.max_centroid_distance}, expected more than 0"
            )


@dataclass(frozen=True, slots=True)
class Linking:
    """What belongs together.

    Attributes:
        object_of: int64, (n_sections,); object of every section, from 0, by first section.
        n_objects: how many objects.
        n_branches: branches joined to a trunk.
        n_absorbed: pieces put into the object around them.
        links: int64, (n_links, 2); the sections of every link.
        gaps: int64, (n_gaps_closed, 2); the sections on both sides of every gap.
        margin: float32, (n_sections,); by how much the link to the next section beats the best
            other one; nan without a next one.
    """

    object_of: NDArray[np.int64]
    n_objects: int
    n_branches: int
    n_absorbed: int
    links: NDArray[np.int64]
    gaps: NDArray[np.int64]
    margin: NDArray[np.float32]

    @property
    def n_links(self) -> int:
        """Links between neighbouring slices."""
        return len(self.links)

    @property
    def n_gaps_closed(self) -> int:
        """Links across slices that lack the object."""
        return len(self.gaps)
