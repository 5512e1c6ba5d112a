"""What a look at all voxels found, as JSON: workers need not look again.

Numbers come back bit for bit: JSON has the shortest text of every float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.engines.lamella.source import Look
from lamella.inference.statistics import Finding, Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["look_from_document", "look_to_document"]

_STATISTICS = ("mean", "std", "low", "high")
_ARRAYS = ("minimum", "maximum", "fill")


def look_to_document(look: Look) -> dict[str, Any]:
    """The document of a look."""
    finding = look.finding
    return {
        "sha256": look.sha256,
        "n_not_finite": int(finding.n_not_finite),
        "statistics": {name: _listed(getattr(finding.statistics, name)) for name in _STATISTICS},
        **{name: _listed(getattr(finding, name)) for name in _ARRAYS},
    }


def look_from_document(document: Mapping[str, Any]) -> Look:
    """The look of a document."""
    statistics = {name: _array(document["statistics"][name]) for name in _STATISTICS}
    minimum, maximum, fill = (np.array(document[name], np.float64) for name in _ARRAYS)
    finding = Finding(
        statistics=Statistics(**statistics),
        n_not_finite=int(document["n_not_finite"]),
        minimum=minimum,
        maximum=maximum,
        fill=fill,
    )
    return Look(finding, str(document["sha256"]))


def _listed(values: NDArray[np.float64] | None) -> list[Any] | None:
    return None if values is None else values.tolist()


def _array(values: list[Any] | None) -> NDArray[np.float64] | None:
    return None if values is None else np.array(values, np.float64)
