"""From the values of label files to what a network learns: classes, channels, or ids.

::

    one file of class values      values of each class → 1..n, others refused (or as told)
    one mask a class              above half → the class; later classes lie on top
    one picture with colours      colour of each class → 1..n, others refused (or as told)
    one file of ids               as they are (tasks that make objects)

Masks that went through a picture program have grey edges. They are cut at half of what the mask's
largest value says is full: 1, 255 or 65535.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names
from lamella.training.pairs.unsure import UnsureBorder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.configuration import PairsConfig, TaskConfig

__all__ = ["IGNORED", "LabelCodec", "half_of"]

IGNORED = "__ignore__"
_BACKGROUND_NAMES = ("background", "_background_")
_UNKNOWN, _HIDDEN = -2, -1
"""Class of values that nothing names, and of those that are to be ignored."""
_TABLE = 1 << 16
_SHOWN = 6


def half_of(largest: float, *, is_float: bool = False) -> float:
    """Where a mask is cut.

    Args:
        largest: largest value of the whole mask.
        is_float: whether the file holds floats.

    Examples:
        >>> half_of(1), half_of(255), half_of(254), half_of(65535)
        (0.5, 127.5, 127.5, 32767.5)
    """
    if is_float and largest <= 1:
        return 0.5
    return next((full / 2 for full in (1, 255, 65535) if largest <= full), largest / 2)


@dataclass(frozen=True)
class LabelCodec:
    """How label files are understood.

    Attributes:
        kind: ``classes``, ``channels`` (one a class) or ``ids``.
        names: of the classes, in order.
        values: class number 1..n by value (or colour as 0xRRGGBB); -1 for what is ignored.
        channel_values: for ``channels`` of one file: values of each class.
        is_color: label files are pictures.
        is_mask: every label file is a mask to be cut.
        threshold: where; None for half.
        others: what values stand for that are not named.
        unsure: border that nothing is learnt of; None for none.
    """

    kind: Literal["classes", "channels", "ids"]
    names: tuple[str, ...]
    values: Mapping[int, int]
    channel_values: tuple[tuple[int, ...], ...]
    is_color: bool
    is_mask: bool
    threshold: float | None
    others: Literal["refuse", "background", "ignore"]
    unsure: UnsureBorder | None = None

    @classmethod
    def of(cls, task: TaskConfig, config: PairsConfig) -> LabelCodec:
        """The codec of a task and a data set.

        Raises:
            InputError: when the two do not fit.
        """
        names = tuple(known.name for known in task.classes)
        if not names:
            raise InputError("task.classes is empty", hint="name at least one class")
        by_class = config.labels if isinstance(config.labels, dict) else {}
        _check_names(by_class, names, "data.labels")
        _check_names(
            {n: 0 for n in config.colors if n not in (IGNORED, *_BACKGROUND_NAMES)},
            names,
            "data.colors",
        )
        if config.threshold is not None and not by_class and len(names) != 1:
            raise InputError(
                f"data.threshold makes one class, the task has {len(names)}: {', '.join(names)}",
                hint="give a mask for each class: data.labels: {axon: PATTERN, myelin: PATTERN}",
            )
        kinds: dict[str, Literal["classes", "channels"]] = {
            "semantic": "classes",
            "multilabel": "channels",
        }
        is_mask = bool(by_class) or config.threshold is not None
        if task.kind not in kinds and (is_mask or config.colors):
            raise InputError(
                f"the task {task.kind} needs the ids of objects, the data give masks or colours",
                hint="give label files in which every object has a value of its own",
            )
        if task.kind != "semantic" and config.unsure is not None:
            raise InputError(
                f"data.unsure is about borders between classes, the task {task.kind} has none",
                hint="leave data.unsure out",
            )
        values, channel_values = _tables(task, config)
        return cls(
            kind=kinds.get(task.kind, "ids"),
            names=names,
            values=values,
            channel_values=channel_values,
            is_color=bool(config.colors),
            is_mask=is_mask,
            threshold=config.threshold,
            others=config.other_values,
            unsure=UnsureBorder.of(config.unsure, names) if config.unsure else None,
        )

    @property
    def n_channels(self) -> int:
        """Length of the first axis of labels."""
        return len(self.names) if self.kind == "channels" else 1

    @property
    def may_hide(self) -> bool:
        """Whether something may be unknown where no mask says so."""
        hides = self.others == "ignore" or self.unsure is not None
        return hides or _HIDDEN in self.values.values()

    @property
    def balanced(self) -> tuple[str, ...]:
        """What foreground patches are drawn for in turn."""
        return ("objects",) if self.kind == "ids" else self.names

    def encode(
        self,
        arrays: Mapping[str, NDArray[Any]],
        halves: Mapping[str, float],
        mask: NDArray[Any] | None,
        *,
        places: Mapping[str, str],
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Turn label arrays into labels.

        Args:
            arrays: (c, z, y, x) by class name ("" for all in one).
            halves: where masks are cut, by the same name.
            mask: (z, y, x), not 0 where labels are known; None = everywhere.
            places: where arrays came from, for messages.

        Returns:
            Labels (m, z, y, x): uint8 or uint16 classes, uint8 channels, int64 ids; and where they
            are valid (None = everywhere).

        Raises:
            InputError: for values that nothing names.
        """
        if self.is_mask:
            labels, valid = self._from_masks(arrays, halves, places)
        else:
            labels, valid = self._from_values(arrays[""], places[""])
        if mask is not None:
            known = np.broadcast_to(mask != 0, labels.shape)
            valid = known.copy() if valid is None else valid & known
        if self.unsure is not None:
            valid = self.unsure.known(labels, valid)
        if valid is not None:
            if valid.all():
                return labels, None
            labels = np.where(valid, labels, labels.dtype.type(0))
        return labels, valid

    def _from_masks(
        self,
        arrays: Mapping[str, NDArray[Any]],
        halves: Mapping[str, float],
        places: Mapping[str, str],
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        shape = next(iter(arrays.values())).shape[1:]
        planes = {
            name or self.names[0]: _grey(array, places[name])[0] > halves[name]
            for name, array in arrays.items()
        }
        if self.kind == "classes":
            labels = np.zeros((1, *shape), np.uint8)
            for number, name in enumerate(self.names, start=1):
                if name in planes:
                    labels[0][planes[name]] = number
            return labels, None
        labels = np.zeros((len(self.names), *shape), np.uint8)
        for channel, name in enumerate(self.names):
            if name in planes:
                labels[channel] = planes[name]
        if len(planes) == len(self.names):
            return labels, None
        known = np.array([name in planes for name in self.names])
        return labels, np.broadcast_to(known[:, None, None, None], labels.shape).copy()

    def _from_values(
        self, array: NDArray[Any], place: str
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        flat = _packed(array, place) if self.is_color else _whole(_grey(array, place), place)
        if self.kind == "ids":
            return self._ids(flat, place)
        classes = self._looked_up(flat, place)
        hidden = classes == _HIDDEN
        valid = ~hidden if hidden.any() else None
        if self.kind == "classes":
            dtype = np.uint8 if len(self.names) < 255 else np.uint16
            return np.where(hidden, 0, classes).astype(dtype), valid
        channels = np.concatenate([np.isin(flat, values) for values in self.channel_values])
        if valid is not None:
            valid = np.broadcast_to(valid, channels.shape).copy()
        return channels.astype(np.uint8), valid

    def _ids(self, flat: NDArray[Any], place: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        if flat.dtype == np.uint64 and flat.size and int(flat.max()) >= 2**63:
            raise InputError(f"{place} has ids above 2^63", hint="relabel its objects 1, 2, 3, ...")
        ids = flat.astype(np.int64)
        ignored = [value for value, number in self.values.items() if number == _HIDDEN]
        hidden = np.isin(ids, ignored) if ignored else np.zeros(ids.shape, bool)
        negative = (ids < 0) & ~hidden
        if negative.any():
            self._other(ids, negative, place)
            hidden |= negative if self.others == "ignore" else False
            ids = np.where(negative, 0, ids)
        return np.where(hidden, 0, ids), (~hidden if hidden.any() else None)

    def _looked_up(self, flat: NDArray[Any], place: str) -> NDArray[np.int32]:
        """Class number of every voxel."""
        low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
        if low >= 0 and high < _TABLE:
            table = np.full(max(high + 1, 1), _UNKNOWN, np.int32)
            for value, number in self.values.items():
                if 0 <= value <= high:
                    table[value] = number
            classes = table[flat]
        else:
            found, inverse = np.unique(flat, return_inverse=True)
            table = np.array([self.values.get(int(v), _UNKNOWN) for v in found], np.int32)
            classes = table[inverse].reshape(flat.shape)
        unknown = classes == _UNKNOWN
        if unknown.any():
            self._other(flat, unknown, place)
            classes = np.where(unknown, _HIDDEN if self.others == "ignore" else 0, classes)
        return classes

    def _other(self, flat: NDArray[Any], unknown: NDArray[np.bool_], place: str) -> None:
        """Refuse values that nothing names, unless it was said what they are."""
        if self.others != "refuse":
            return
        values, counts = np.unique(flat[unknown], return_counts=True)
        order = np.argsort(-counts)
        write = (lambda v: f"#{v:06x}") if self.is_color else str
        shown = ", ".join(f"{write(int(values[i]))} ({counts[i]} voxels)" for i in order[:_SHOWN])
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        raise InputError(
            f"{place} holds {'colours' if self.is_color else 'values'} that no class names:"
            f" {shown}{more}",
            hint=self._way_out(int(flat.max()) if flat.size else 0),
            details={"unknown_values": [write(int(values[i])) for i in order[:1000]]},
        )

    def _way_out(self, largest: int) -> str:
        if self.is_color:
            return (
                "name them in data.colors (__ignore__ for unknown places), or set"
                " data.other_values=background; lossy pictures (JPEG) have colours of their own"
            )
        is_plain = [value for value, number in self.values.items() if number > 0] == [1]
        if is_plain and largest in (254, 255, 65535):
            return (
                "it looks like a mask: set data.threshold=127, or give"
                f" data.labels: {{{self.names[0]}: PATTERN}}, which is cut at half"
            )
        return (
            "name them in task.classes (values) or task.ignore_values, or set"
            " data.other_values=background"
        )


def _check_names(given: Mapping[str, object], names: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in names:
            near = nearest_names(name, names)
            raise InputError(
                f"{where} names the class {name!r}, which the task does not have",
                hint=(f"did you mean {near[0]}? " if near else "")
                + f"task.classes are {', '.join(names)}",
            )


def _tables(
    task: TaskConfig, config: PairsConfig
) -> tuple[dict[int, int], tuple[tuple[int, ...], ...]]:
    """Class numbers by value, and values by class."""
    values: dict[int, int] = {}
    by_class: list[tuple[int, ...]] = []
    if config.colors:
        values[0] = 0
        for name, rgb in config.colors.items():
            number = _HIDDEN if name == IGNORED else 0
            if name in [known.name for known in task.classes]:
                number = 1 + [known.name for known in task.classes].index(name)
            values[_pack(rgb)] = number
        own = (
            tuple(value for value, n in values.items() if n == number)
            for number in range(1, len(task.classes) + 1)
        )
        return values, tuple(own)
    values[0] = 0
    for number, known in enumerate(task.classes, start=1):
        own = known.values or (number,)
        for value in own:
            if task.kind != "multilabel" and values.get(value, 0) > 0:
                raise InputError(
                    f"the value {value} is given to two classes, {known.name!r} and"
                    f" {task.classes[values[value] - 1].name!r}",
                    hint="give every class its own values, or use the task multilabel",
                )
            values[value] = number
        by_class.append(own)
    values |= dict.fromkeys(task.ignore_values, _HIDDEN)
    return values, tuple(by_class)


def _pack(rgb: tuple[int, int, int]) -> int:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _packed(array: NDArray[Any], place: str) -> NDArray[Any]:
    """Colours as one number each, (1, z, y, x)."""
    if array.dtype != np.uint8 or len(array) not in (1, 2, 3, 4):
        raise InputError(
            f"{place} is no picture with 8-bit colours: {len(array)} channel(s) of {array.dtype}",
            hint="save it as an RGB PNG, or leave data.colors out",
        )
    rgb = array[:3] if len(array) >= 3 else np.broadcast_to(array[:1], (3, *array.shape[1:]))
    wide = rgb.astype(np.int32)
    return (wide[0] << 16 | wide[1] << 8 | wide[2])[None]


def _grey(array: NDArray[Any], place: str) -> NDArray[Any]:
    """The one channel of labels, (1, z, y, x); grey pictures may be stored as colours."""
    if len(array) == 1:
        return array
    colors = array[: 3 if len(array) >= 3 else 1]
    if not all(np.array_equal(colors[0], plane) for plane in colors[1:]):
        raise InputError(
            f"{place} is a coloured picture with {len(array)} channels, labels have one",
            hint="say which colour is which class with data.colors, or save class values",
        )
    return array[:1]


def _whole(array: NDArray[Any], place: str) -> NDArray[Any]:
    """Labels as integers."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind != "f":
        return array
    if not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise InputError(
            f"{place} holds fractions, not labels",
            hint="probabilities become a mask with data.threshold=0.5",
        )
    return array.astype(np.int64)
