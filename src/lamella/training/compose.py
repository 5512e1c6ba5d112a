"""Configurations of trainings, put together from YAML pieces and checked to the last key.

A configuration is one YAML file with a defaults list that names pieces by group (``network:
unet_resnet18``); :mod:`lamella.training.conf` ships files and pieces, and a file of one's own may
name them too. The pieces are joined by Hydra's compose API; what comes out is validated by
:class:`~lamella.training.configuration.TrainConfig`. Hydra makes no folder, no log and no file.

Words after the configuration change it: ``network=mednext_s`` takes another piece of a group,
``trainer.steps=500`` sets a value, ``task.classes.0.color=[255,0,0]`` a value in a list, and
``~trainer.minutes`` takes a value out, so that its default counts.

Examples:
    >>> words = ["data.root=scans", "task.classes=[mito]", "trainer.steps=500"]
    >>> config = compose("em2d_semantic", words)
    >>> config.trainer.steps, config.network.id
    (500, 'unet')
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamella.core.errors import InputError, MissingPathError
from lamella.core.optional import require
from lamella.core.registry import nearest_names
from lamella.training.checking import unknown_key, validate
from lamella.training.configuration_keys import known_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamella.training.configuration import TrainConfig

__all__ = ["compose", "group_options", "shipped_configs", "to_yaml"]

CONF = Path(__file__).with_name("conf")
CONFIG_NAME = "config.yaml"
"""What a run folder calls the configuration it was made with."""


def shipped_configs() -> tuple[str, ...]:
    """Names of the configurations that come with Lamella.

    Examples:
        >>> "em2d_semantic" in shipped_configs()
        True
    """
    return tuple(sorted(path.stem for path in CONF.glob("*.yaml")))


def group_options(folder: Path = CONF) -> dict[str, tuple[str, ...]]:
    """Pieces by group.

    Args:
        folder: where the groups are.

    Examples:
        >>> group_options()["optimiser"]
        ('adamw', 'radam', 'sgd')
    """
    return {
        group.name: tuple(sorted(piece.stem for piece in group.glob("*.yaml")))
        for group in sorted(folder.iterdir())
        if group.is_dir() and any(group.glob("*.yaml"))
    }


def compose(name_or_path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """A configuration from its name or file and words that change it.

    Args:
        name_or_path: name of a shipped configuration, a YAML file, or the folder of a run.
        overrides: ``key=value``, ``group=piece`` or ``~key``.

    Raises:
        MissingPathError: no such file.
        InputError: no such configuration, key or piece, or a value that is impossible; the hint
            names what is nearest.
        MissingDependencyError: Hydra is not installed.
    """
    folder, name = _located(name_or_path)
    groups = _groups(folder)
    chosen, changes = _sorted_out(overrides, groups)
    values = _composed(folder, name, chosen, groups)
    for change in changes:
        change.apply(values)
    return validate(values)


def to_yaml(config: TrainConfig) -> str:
    """A configuration as YAML that :func:`compose` reads again.

    Examples:
        >>> config = compose("em2d_semantic", ["data.root=scans", "task.classes=[mito]"])
        >>> "root: scans" in to_yaml(config)
        True
    """
    import yaml

    return str(
        yaml.safe_dump(
            config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
        )
    )


class _Change:
    """One word that sets a value or takes it out."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.removes = word.startswith("~")
        key, _, self.text = word.lstrip("~+").partition("=")
        self.path = key.strip().split(".")

    @property
    def key(self) -> str:
        return ".".join(self.path)

    def apply(self, values: dict[str, Any]) -> None:
        """Change ``values`` in place."""
        at: Any = values
        for depth, part in enumerate(self.path[:-1]):
            step = self._step(at, part, depth)
            inside = at.get(step) if isinstance(at, dict) else at[step]
            if not isinstance(inside, dict | list):
                # A document left at its defaults so far, or a class that is a name only.
                inside = at[step] = {"name": inside} if isinstance(inside, str) else {}
            at = inside
        last = self._step(at, self.path[-1], len(self.path) - 1)
        if not self.removes:
            at[last] = _parsed(self.text)
        elif isinstance(at, list):
            del at[last]
        else:
            at.pop(last, None)

    def _step(self, at: Any, part: str, depth: int) -> Any:
        if not isinstance(at, list):
            return part
        if not part.isdecimal() or int(part) >= len(at):
            inside = ".".join(self.path[:depth])
            raise InputError(
                f"{self.key}: {inside} is a list of {len(at)}, which has no {part!r}",
                hint=f"count from 0, or give the whole list: {inside}=[...]",
            )
        return int(part)


def _located(name_or_path: str) -> tuple[Path, str]:
    """Folder and name (without suffix) of a configuration."""
    path = Path(name_or_path).expanduser()
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        path = path / CONFIG_NAME
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise MissingPathError(
                f"there is no configuration {path}",
                hint=f"shipped configurations go by their names: {', '.join(shipped_configs())}",
            )
        if path.suffix == ".yml":
            raise InputError(f"{path} must be called {path.stem}.yaml", hint="rename it")
        return path.resolve().parent, path.stem
    if name_or_path in shipped_configs():
        return CONF, name_or_path
    near = nearest_names(name_or_path, shipped_configs())
    raise InputError(
        f"there is no configuration {name_or_path!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + f"shipped are {', '.join(shipped_configs())}; a file of your own ends in .yaml",
        details={"known": list(shipped_configs())},
    )


def _groups(folder: Path) -> dict[str, tuple[str, ...]]:
    """Pieces by group: shipped ones, and those beside a file of one's own."""
    groups = group_options()
    if folder != CONF:
        own = group_options(folder)
        groups = {
            name: tuple(sorted({*pieces, *own.get(name, ())})) for name, pieces in groups.items()
        }
    return groups


def _sorted_out(
    words: Sequence[str], groups: dict[str, tuple[str, ...]]
) -> tuple[dict[str, str], list[_Change]]:
    chosen: dict[str, str] = {}
    changes: list[_Change] = []
    for word in words:
        change = _Change(word)
        if "=" not in word and not change.removes:
            raise InputError(
                f"{word!r} has no '='", hint="write key=value, such as trainer.steps=500"
            )
        if change.key in groups and not change.removes:
            _check_piece(change.key, change.text, groups)
            chosen[change.key] = change.text
            continue
        if not _is_known(change.path):
            raise unknown_key(change.key)
        changes.append(change)
    return chosen, changes


def _check_piece(group: str, piece: str, groups: dict[str, tuple[str, ...]]) -> None:
    if piece in groups[group]:
        return
    near = nearest_names(piece, groups[group])
    raise InputError(
        f"{group} has no piece {piece!r}",
        hint=(f"did you mean {' or '.join(near)}? " if near else "")
        + f"there are: {', '.join(groups[group])}",
        details={"group": group, "known": list(groups[group])},
    )


def _is_known(path: Sequence[str]) -> bool:
    """Whether a key may exist: what is inside free dictionaries and lists is judged later."""
    named = ".".join(part for part in path if not part.isdecimal())
    known = known_keys()
    return named in known or any(
        named.startswith(f"{key}.") and known[key].is_open for key in known
    )


def _composed(
    folder: Path, name: str, chosen: dict[str, str], groups: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The joined pieces as plain values."""
    require("hydra", extra="train", purpose="putting configurations together")
    from hydra import compose as join
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    words = [f"{group}={piece}" for group, piece in chosen.items()]
    if folder != CONF:
        words.append(f"hydra.searchpath=['file://{CONF}']")
    path = folder / f"{name}.yaml"
    try:
        with _own_hydra(), initialize_config_dir(str(folder), version_base="1.3"):
            joined = join(name, overrides=words)
        values: Any = OmegaConf.to_container(joined, resolve=True, throw_on_missing=False)
    except MissingMandatoryValue as error:  # an interpolation of something left open
        raise InputError(f"{path}: {error}", hint="set it with key=value") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, path, chosen, groups) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no valid YAML: {error}", hint="mind indentation and colons"
        ) from None
    return dict(values)


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra keeps one global state: ours is gone afterwards, and somebody else's is back."""
    from hydra.core.global_hydra import GlobalHydra

    other = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            # A defaults list without _self_: the file itself then counts last, as people expect.
            warnings.filterwarnings("ignore", message=".*_self_")
            yield
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = other


def _explained(
    error: Exception, path: Path, chosen: dict[str, str], groups: dict[str, tuple[str, ...]]
) -> InputError:
    text = str(error)
    first = next((line for line in text.splitlines() if line.strip()), text)
    if "No match in the defaults list" in text:
        group = next((name for name in chosen if f"'{name}'" in text), "a group")
        return InputError(
            f"{path} takes no piece for {group}: its defaults list does not name that group",
            hint=f"add `- {group}: {chosen.get(group, 'PIECE')}` to its defaults list",
        )
    if "Could not find" in text or "Could not load" in text:
        wanted = text.partition("'")[2].rpartition("'")[0].partition("'\n")[0].split("'")
        names = [piece for piece in wanted if "/" in piece] or [wanted[-1] if wanted else ""]
        group, _, piece = names[-1].rpartition("/")
        known = groups.get(group, shipped_configs())
        near = nearest_names(piece, known)
        return InputError(
            f"{path}: its defaults list names {names[-1]!r}, which does not exist",
            hint=(f"did you mean {' or '.join(near)}? " if near else "")
            + f"there are: {', '.join(known)}",
        )
    return InputError(
        f"{path}: {first}", hint="compare with a shipped configuration (--print-config)"
    )


def _parsed(text: str) -> Any:
    """A value as YAML reads it; what is no YAML (a pattern such as ``*.tif``) is text."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        values: Any = OmegaConf.to_container(
            OmegaConf.from_dotlist([f"value={text}"]), resolve=False
        )
    except (YAMLError, OmegaConfBaseException, ValueError):
        return text
    return values["value"]
