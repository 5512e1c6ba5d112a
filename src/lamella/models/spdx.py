"""Licences by the ids of SPDX, which catalogues of models ask for.

Examples:
    >>> spdx_id("CC BY 4.0"), spdx_id("apache 2.0"), spdx_id("MIT")
    ('CC-BY-4.0', 'Apache-2.0', 'MIT')
"""

from __future__ import annotations

import re

from lamella.core.errors import ModelError

__all__ = ["spdx_id"]

_COMMON = (
    "0BSD", "AFL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "Artistic-2.0",
    "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-4.0",
    "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-SA-4.0", "CC0-1.0",
    "CDLA-Permissive-2.0", "ECL-2.0", "EPL-2.0", "EUPL-1.2", "GPL-2.0-only",
    "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.1-only",
    "LGPL-2.1-or-later", "LGPL-3.0-only",
    "LGPL-3.0-or-later", "MIT", "MPL-2.0", "ODbL-1.0", "PDDL-1.0", "Unlicense", "Zlib",
)  # fmt: skip
_ALSO = {
    "apache": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache licence 2.0": "Apache-2.0",
    "cc0": "CC0-1.0",
    "cc zero": "CC0-1.0",
    "mit license": "MIT",
    "mit licence": "MIT",
    "new bsd": "BSD-3-Clause",
    "simplified bsd": "BSD-2-Clause",
    "mpl": "MPL-2.0",
}
_UNCLEAR = {
    "bsd": "BSD-2-Clause or BSD-3-Clause",
    "gpl": "GPL-3.0-only or GPL-3.0-or-later",
    "gpl 3.0": "GPL-3.0-only or GPL-3.0-or-later",
    "gplv3": "GPL-3.0-only or GPL-3.0-or-later",
    "cc by": "CC-BY-4.0",
    "cc by nc": "CC-BY-NC-4.0",
    "cc by sa": "CC-BY-SA-4.0",
}


def spdx_id(licence: str) -> str:
    """The SPDX id of a licence as people write it.

    Ids that are not among the common ones are left as they are, where they look like one: whoever
    knows the whole list judges them.

    Raises:
        ModelError: for none, for one that has several versions, and for words that are no id.
    """
    plain = _plain(licence)
    for known in _COMMON:
        if _plain(known) == plain:
            return known
    if plain in _ALSO:
        return _ALSO[plain]
    if plain in _UNCLEAR:
        raise ModelError(
            f"the licence {licence!r} has several versions",
            hint=f"say which one: --licence {_UNCLEAR[plain]}",
        )
    if re.fullmatch(r"[A-Za-z0-9.+]+(-[A-Za-z0-9.+]+)+", licence.strip()):
        return licence.strip()
    raise ModelError(
        f"the licence of the model is {licence!r}, which is no id of SPDX",
        hint="whoever owns the model has to decide; then name its id, for example: --licence"
        " CC-BY-4.0 (https://spdx.org/licenses)",
    )


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text.strip().lower())
