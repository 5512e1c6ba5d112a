"""From plain values to a checked configuration, with errors that name what was meant."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from lamella.core.errors import InputError, LamellaError
from lamella.core.registry import nearest_names
from lamella.training.configuration import TrainConfig
from lamella.training.configuration_keys import data_kinds, nearest_keys

__all__ = ["augment_options", "unknown_key", "validate"]


def validate(values: dict[str, Any]) -> TrainConfig:
    """A configuration from plain values, checked to the last key.

    Args:
        values: as composed; may be changed.

    Raises:
        InputError: listing what is unknown, lacking or impossible, with the nearest valid key.
    """
    _check_open(values)
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as invalid:
        if not _numbers_to_text(values, invalid):
            raise _refused(invalid) from None
        try:
            config = TrainConfig.model_validate(values)
        except ValidationError as still:
            raise _refused(still) from None
    _check_arguments(config)
    return config


def _check_open(values: Any, at: str = "") -> None:
    """Refuse values that a configuration leaves to its user (``???`` in YAML)."""
    if isinstance(values, dict):
        for key, value in values.items():
            _check_open(value, f"{at}.{key}" if at else str(key))
    elif values == "???":
        example = {
            "task.classes": "[mitochondrion,membrane]",
            "data.root": "FOLDER",
            "model.id": "my-model",
        }.get(at, "VALUE")
        raise InputError(f"{at} must be given", hint=f"add {at}={example}", details={"key": at})


def _numbers_to_text(values: Any, invalid: ValidationError) -> bool:
    """Make texts of numbers where texts are wanted (``model.version=2``); whether it did."""
    is_changed = False
    for problem in invalid.errors():
        if problem["type"] != "string_type" or not isinstance(problem["input"], int | float):
            continue
        at = values
        path = [part for part in problem["loc"] if part not in data_kinds()]
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = str(problem["input"])
        is_changed = True
    return is_changed


def _refused(invalid: ValidationError) -> InputError:
    """All problems in one error, unknown keys first: they often explain the rest."""
    problems, hints = [], []
    for item in sorted(invalid.errors(), key=lambda each: each["type"] != "extra_forbidden"):
        path = [str(part) for part in item["loc"] if part not in data_kinds()]
        key = ".".join(path)
        if item["type"] == "extra_forbidden":
            error = unknown_key(key)
            problems.append(error.message)
            hints.append(str(error.hint))
        else:
            given = "" if item["type"] == "missing" else f", got {item['input']!r}"
            reason = item["msg"].removeprefix("Value error, ")
            problems.append(
                f"{key or 'the configuration'}: {reason[:1].lower()}{reason[1:]}{given}"
            )
    return InputError(
        "; ".join(dict.fromkeys(problems[:5])),
        hint=hints[0] if hints else "see the reference of training configurations",
        details={"problems": problems},
    )


def _check_arguments(config: TrainConfig) -> None:
    """What is left open by the documents: arguments of networks and of augmentation."""
    from lamella.networks.registry import parse_arguments
    from lamella.training.augment import AugmentOptions

    for name in ("in_channels", "out_channels"):
        if name in config.network.arguments:
            raise InputError(
                f"network.arguments.{name} follows from data and task", hint="leave it out"
            )
    try:
        parse_arguments(
            config.network.id, {**config.network.arguments, "in_channels": 1, "out_channels": 1}
        )
    except LamellaError as error:
        raise InputError(f"network: {error.message}", hint=error.hint) from None
    options = config.augmentation.options
    known = [name for name in AugmentOptions.__slots__ if not name.startswith("_")]
    for name in options:
        if name not in known:
            near = nearest_names(name, known)
            raise InputError(
                f"augmentation.options has no {name!r}",
                hint=(f"did you mean {' or '.join(near)}? " if near else "")
                + f"there are: {', '.join(known)}",
            )
    augment_options(config)


def augment_options(config: TrainConfig) -> Any:
    """The options of augmentation that a configuration states.

    Raises:
        InputError: for an impossible one.
    """
    from pydantic import TypeAdapter

    from lamella.training.augment import AugmentOptions

    try:
        return TypeAdapter(AugmentOptions).validate_python(dict(config.augmentation.options))
    except ValidationError as invalid:
        problem = invalid.errors()[0]
        key = ".".join(str(part) for part in ("augmentation", "options", *problem["loc"]))
        given = f", got {problem['input']!r}" if problem["loc"] else ""
        raise InputError(
            f"{key}: {problem['msg'].removeprefix('Value error, ')}{given}",
            hint="see the reference of training configurations",
        ) from None


def unknown_key(key: str) -> InputError:
    """What to say of a key that does not exist."""
    near = nearest_keys(key)
    return InputError(
        f"unknown key {key!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + "`lamella train CONFIG --print-config` shows every key",
        details={"key": key, "nearest": near},
    )
