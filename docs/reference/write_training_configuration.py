"""Write training-configuration.md from the documents that check a configuration.

    python docs/reference/write_training_configuration.py

A test compares the page with what this writes, so that no key is left out.
"""

import ast
import inspect
import itertools
import json
import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from lamella.training import configuration
from lamella.training.augment import AugmentOptions
from lamella.training.compose import CONF, group_options, shipped_configs
from lamella.training.configuration_keys import documents_of, type_name

PAGE = Path(__file__).with_name("training-configuration.md")

HEAD = """# Training configuration

Written by `docs/reference/write_training_configuration.py`; every key is here, and no other is
taken. How to use them: [train a model](../how-to/train.md).

`lamella train CONFIG key=value …` sets a value, `group=piece` takes another piece of a group,
`~key` takes a value back to its default. `lamella train CONFIG --print-config` shows the result.
"""


def field_texts() -> dict[tuple[str, str], str]:
    """What is written under each field, by class and field."""
    texts = {}
    for node in ast.parse(inspect.getsource(configuration)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts[node.name, ""] = (ast.get_docstring(node) or "").strip()
        for here, behind in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant)
            if isinstance(here, ast.AnnAssign) and is_text:
                texts[node.name, here.target.id] = str(behind.value.value)
    return texts


def plain(text: str) -> str:
    """A docstring as Markdown in a table: one line, code in single back-ticks, no roles."""
    text = re.sub(r":[a-z]+:`~?([^`]*)`", lambda m: f"`{m[1].split('.')[-1]}`", text)
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


def shown(default: object) -> str:
    """A default for people."""
    if default is ...:
        return "**needed**"
    if hasattr(default, "model_dump"):
        return ""
    if default in ("", (), {}, None):
        return "-"
    return f"`{json.dumps(default)}`"


def default_of(info: object) -> object:
    """The default of a field; ``...`` where there is none."""
    if info.default_factory is not None:
        return info.get_default(call_default_factory=True)
    return ... if info.default is PydanticUndefined else info.default


def tables(document: type, prefix: str, texts: dict[tuple[str, str], str]) -> list[str]:
    """The keys of a document, and those of the documents in it."""
    name = document.__name__
    about = texts.get((name, ""), "").split("\n\n")[0]
    lines = ["", *([plain(about), ""] if about else [])]
    lines += ["| key | values | default | |", "|---|---|---|---|"]
    inner = []
    for field, info in document.model_fields.items():
        words = plain(texts.get((name, field), ""))
        within = documents_of(info.annotation)
        kind = type_name(info.annotation).replace("|", "·")
        if not within or kind.startswith("list"):
            kind = f"list of {field}, see below" if within else kind
            lines.append(f"| `{prefix}{field}` | {kind} | {shown(default_of(info))} | {words} |")
        # Parts of a mixture are what the tables beside it describe.
        for each in within if field != "parts" else ():
            inner += tables(each, f"{prefix}{field}.", texts)
    return lines + inner


def section(name: str, annotation: object, texts: dict[tuple[str, str], str]) -> list[str]:
    """All keys below one key of the configuration."""
    lines = ["", f"## `{name}`"]
    if name in group_options():
        lines += ["", "Pieces: " + ", ".join(f"`{one}`" for one in group_options()[name]) + "."]
    documents = documents_of(annotation)
    for document in documents:
        if len(documents) > 1:
            kind = document.model_fields["kind"].default
            lines += ["", f"### `{name}.kind={kind}`"]
        lines += tables(document, f"{name}.", texts)
    return lines


def about_config(name: str) -> str:
    """The first paragraph of the comment that a configuration begins with."""
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    first = list(itertools.takewhile(lambda line: line.strip("# "), lines))
    return plain(" ".join(line.strip("# ") for line in first))


def page() -> str:
    """The whole page."""
    texts = field_texts()
    lines = [HEAD, "## Shipped configurations", "", "| name | |", "|---|---|"]
    lines += [f"| `{name}` | {about_config(name)} |" for name in shipped_configs()]
    for name, info in configuration.TrainConfig.model_fields.items():
        if documents_of(info.annotation):
            lines += section(name, info.annotation, texts)
        else:
            kind, default = type_name(info.annotation), shown(default_of(info))
            lines += ["", f"## `{name}`", "", f"{kind}, default {default}."]
    return "\n".join([*lines, *options()]) + "\n"


def options() -> list[str]:
    """Options of augmentation, from the docstring of their class."""
    text = AugmentOptions.__doc__ or ""
    lines = ["", "## `augmentation.options`", "", plain(text.split("\n")[0]), ""]
    lines += ["| option | default | |", "|---|---|---|"]
    pattern = r"^\s{8}(\w+): (.*?)(?=^\s{8}\w+: |\Z)"
    for name, words in re.findall(pattern, text, re.M | re.S):
        default = AugmentOptions.__dataclass_fields__[name].default
        lines.append(f"| `{name}` | {shown(default)} | {plain(words)} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
