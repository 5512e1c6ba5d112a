"""Write settings.md from the settings of a server.

    python docs/reference/write_settings.py

A test compares the page with what this writes, so that no setting is left out.
"""

import json
from pathlib import Path

from lamella.cli.serve import SECTIONS
from lamella.server.settings import PREFIX, Settings, flag_of, masked

PAGE = Path(__file__).with_name("settings.md")

HEAD = f"""# Settings of a server

Written by `docs/reference/write_settings.py`; every setting is here, and no other is taken. How to
use them: [run a server](../how-to/run-a-server.md).

Every setting has a default that works. It can be given in three places; a later one wins:

1. the file `server.toml` in the data folder, or the one that `--config` or
   `{PREFIX}CONFIG` names: `workers = 4`,
2. the environment: `{PREFIX}WORKERS=4` (lists with commas, tables as JSON),
3. a flag: `--workers 4` (of a list, once for every entry).

`lamella serve --show-settings` shows every value and where it came from. Sizes may have a unit
(`50GB`, `2 GiB`), times too (`90min`, `12h`, `30d`). A name that is none is refused, with the
nearest ones.
"""


def default_of(name: str) -> str:
    """A default for people, the same on every machine."""
    if name == "data_dir":
        return "`~/.local/share/lamella/server`"
    value = Settings.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, bool):
        return json.dumps(value)
    return masked(name, value)


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, names in SECTIONS.items():
        lines += [f"## {title.partition(' (')[0]}", ""]
        lines += ["| setting | flag | default | |", "|---|---|---|---|"]
        for name in names:
            text = " ".join((Settings.model_fields[name].description or "").split())
            words = text.replace("|", "\\|")
            lines.append(f"| `{name}` | `{flag_of(name)}` | {default_of(name)} | {words} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
