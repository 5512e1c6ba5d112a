"""Labels: a volume of integers that say what each voxel is. 0 is background.

Examples:
    >>> import numpy as np
    >>> labels = Labels.from_array(np.zeros((4, 4, 4), np.uint16), classes=(LabelClass(1, "mito"),))
    >>> labels.class_name(1), labels.class_name(7)
    ('mito', 'class 7')
"""

import colorsys
from dataclasses import dataclass, field

import numpy as np

from lamella.core.errors import InputError
from lamella.volume.volume import Volume

__all__ = ["LabelClass", "Labels", "label_color"]

# Okabe-Ito: told apart with every common colour blindness, readable over grey images.
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)


def label_color(value: int) -> tuple[int, int, int]:
    """A stable, distinct colour for a label value, RGB 0..255; black for background.

    Source: Okabe & Ito (2008) for 1..7, then hues spaced by the golden ratio.
    """
    if value == 0:
        return (0, 0, 0)
    if value <= len(_PALETTE):
        return _PALETTE[value - 1]
    hue = (value * 0.618033988749895) % 1.0
    lightness = 0.45 + 0.2 * ((value * 0.7548776662466927) % 1.0)
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return (round(red * 255), round(green * 255), round(blue * 255))


@dataclass(frozen=True, slots=True)
class LabelClass:
    """A class: its value in a semantic label volume, its name, its colour (RGB 0..255)."""

    value: int
    name: str
    color: tuple[int, int, int] | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The given colour, or the stable one of its value."""
        return self.color if self.color is not None else label_color(self.value)


@dataclass(frozen=True)
class Labels(Volume):
    """A volume of class ids or instance ids.

    Args:
        classes: names and colours. For instances: what the instances are of.
        is_instance: whether values are instance ids (else class ids).
    """

    classes: tuple[LabelClass, ...] = field(default=())
    is_instance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype.kind not in "uib":
            raise InputError(
                f"labels must be integers, got {self.dtype}",
                hint="threshold probabilities first, or convert with --dtype uint16",
            )

    def class_name(self, value: int) -> str:
        """The name of a class, or a stand-in."""
        for known in self.classes:
            if known.value == value:
                return known.name
        return "background" if value == 0 else f"class {value}"

    @classmethod
    def like(
        cls,
        volume: Volume,
        data: np.ndarray,
        *,
        classes: tuple[LabelClass, ...] = (),
        is_instance: bool = False,
        name: str = "labels",
    ) -> "Labels":
        """Labels that lie exactly on ``volume``, and remember its path.

        Args:
            volume: what was segmented.
            data: integers, of the volume's spatial shape.
            classes: names and colours.
            is_instance: whether values are instance ids.
            name: short name.

        Raises:
            InputError: when the shapes differ.
        """
        if tuple(data.shape) != volume.spatial_shape:
            raise InputError(
                f"labels of shape {tuple(data.shape)} do not lie on a volume of shape"
                f" {volume.spatial_shape}"
            )
        return cls(
            data=data,
            axes=volume.axes.without("t", "c"),
            affine=volume.affine,
            unit=volume.unit,
            name=name,
            metadata={"source_path": str(volume.path)} if volume.path is not None else {},
            classes=classes,
            is_instance=is_instance,
        )
