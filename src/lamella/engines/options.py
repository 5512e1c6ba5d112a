"""Options of an engine: checked against its descriptor before any work begins.

Example:
    >>> from lamella.engines.classical.descriptor import OPTIONS
    >>> resolve_options("classical", OPTIONS, {"method": "li"})["method"]
    'li'
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lamella.core.errors import InputError
from lamella.core.registry import nearest_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lamella.engines.engine import OptionDescriptor

__all__ = ["OptionValue", "resolve_options"]

OptionValue = bool | int | float | str | None


def resolve_options(
    engine_id: str, known: Sequence[OptionDescriptor], given: Mapping[str, object]
) -> dict[str, OptionValue]:
    """Return the value of every known option, given ones checked and the rest at their default.

    Text is converted where the option is a number or a truth value, because ``--option k=v``
    brings text.

    Args:
        engine_id: named in messages.
        known: the engine's options.
        given: what the request says.

    Raises:
        InputError: for an unknown option, a value of the wrong type or out of range.
    """
    by_name = {option.name: option for option in known}
    for name in given:
        if name not in by_name:
            near = nearest_names(name, by_name)
            raise InputError(
                f"the engine {engine_id!r} has no option {name!r}",
                hint=(f"did you mean {' or '.join(near)}? " if near else "")
                + (f"it takes: {', '.join(by_name)}" if by_name else "it takes no options"),
            )
    return {
        option.name: _checked(option, given[option.name])
        if given.get(option.name) is not None
        else option.default
        for option in known
    }


def _checked(option: OptionDescriptor, value: object) -> OptionValue:
    if option.kind == "choice":
        return _choice(option, value)
    if option.kind == "text":
        return str(value)
    if option.kind == "bool":
        return _truth(option, value)
    return _number(option, value)


def _choice(option: OptionDescriptor, value: object) -> str:
    if value in option.choices:
        return str(value)
    near = nearest_names(str(value), option.choices)
    raise InputError(
        f"option {option.name} is {value!r}, expected one of {', '.join(option.choices)}",
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _truth(option: OptionDescriptor, value: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    known = words.get(str(value).lower())
    if known is None:
        raise InputError(f"option {option.name} is {value!r}, expected true or false")
    return known


def _number(option: OptionDescriptor, value: object) -> int | float:
    try:
        number = float(str(value))
    except ValueError:
        raise InputError(
            f"option {option.name} is {value!r}, expected a number",
            hint=option.description,
        ) from None
    low = -math.inf if option.minimum is None else option.minimum
    high = math.inf if option.maximum is None else option.maximum
    if not math.isfinite(number) or not low <= number <= high:
        raise InputError(
            f"option {option.name} is {value!r}, expected a finite number"
            + (f" from {low:g}" if math.isfinite(low) else "")
            + (f" to {high:g}" if math.isfinite(high) else ""),
            hint=option.description,
        )
    if option.kind == "int":
        if number != int(number):
            raise InputError(f"option {option.name} is {value!r}, expected a whole number")
        return int(number)
    return number
