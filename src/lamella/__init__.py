"""From a microscopy or CT volume to a measured, corrected, reproducible segmentation.

Everything public is here, imported when it is first used::

    import lamella as lm

    volume = lm.open("tomogram.mrc")                    # lazy, with its geometry
    run = lm.segment(volume, model="membrane-3d")       # run.labels, run.objects, run.manifest
    lm.save(run.labels, "labels.mrc")
    lm.evaluate(run.labels, "reference.nii.gz")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella.client.async_client import AsyncClient as AsyncClient
    from lamella.client.client import Client as Client
    from lamella.core.errors import LamellaError as LamellaError
    from lamella.core.progress import CancelToken as CancelToken
    from lamella.core.progress import Progress as Progress
    from lamella.io.format import OpenOptions as OpenOptions
    from lamella.io.format import SaveOptions as SaveOptions
    from lamella.volume import Affine as Affine
    from lamella.volume import Axes as Axes
    from lamella.volume import Box as Box
    from lamella.volume import LabelClass as LabelClass
    from lamella.volume import Labels as Labels
    from lamella.volume import Size as Size
    from lamella.volume import Spacing as Spacing
    from lamella.volume import Volume as Volume
    from lamella.wire.manifest import RunManifest as RunManifest
    from lamella.wire.request import SegmentRequest as SegmentRequest
    from lamella.workflows.api import evaluate as evaluate
    from lamella.workflows.api import measure as measure
    from lamella.workflows.api import open_path as open  # noqa: A004 - lm.open, never a star import
    from lamella.workflows.api import open_run as open_run
    from lamella.workflows.api import reliability as reliability
    from lamella.workflows.api import save as save
    from lamella.workflows.api import segment as segment
    from lamella.workflows.detect_api import detect_vertebrae as detect_vertebrae
    from lamella.workflows.run import Run as Run

    __version__: str

# Name → where it lives. Kept by hand beside the imports above, which only type checkers see;
# tests/workflows/test_public_api.py holds the two together.
_HOMES = {
    "Affine": "lamella.volume:Affine",
    "AsyncClient": "lamella.client.async_client:AsyncClient",
    "Axes": "lamella.volume:Axes",
    "Box": "lamella.volume:Box",
    "CancelToken": "lamella.core.progress:CancelToken",
    "Client": "lamella.client.client:Client",
    "LabelClass": "lamella.volume:LabelClass",
    "Labels": "lamella.volume:Labels",
    "LamellaError": "lamella.core.errors:LamellaError",
    "OpenOptions": "lamella.io.format:OpenOptions",
    "Progress": "lamella.core.progress:Progress",
    "Run": "lamella.workflows.run:Run",
    "RunManifest": "lamella.wire.manifest:RunManifest",
    "SaveOptions": "lamella.io.format:SaveOptions",
    "SegmentRequest": "lamella.wire.request:SegmentRequest",
    "Size": "lamella.volume:Size",
    "Spacing": "lamella.volume:Spacing",
    "Volume": "lamella.volume:Volume",
    "__version__": "lamella.workflows.versions:LAMELLA_VERSION",
    "detect_vertebrae": "lamella.workflows.detect_api:detect_vertebrae",
    "evaluate": "lamella.workflows.api:evaluate",
    "measure": "lamella.workflows.api:measure",
    "open": "lamella.workflows.api:open_path",
    "open_run": "lamella.workflows.api:open_run",
    "reliability": "lamella.workflows.api:reliability",
    "save": "lamella.workflows.api:save",
    "segment": "lamella.workflows.api:segment",
}

__all__ = [
    "Affine",
    "AsyncClient",
    "Axes",
    "Box",
    "CancelToken",
    "Client",
    "LabelClass",
    "Labels",
    "LamellaError",
    "OpenOptions",
    "Progress",
    "Run",
    "RunManifest",
    "SaveOptions",
    "SegmentRequest",
    "Size",
    "Spacing",
    "Volume",
    "__version__",
    "detect_vertebrae",
    "evaluate",
    "measure",
    "open",
    "open_run",
    "reliability",
    "save",
    "segment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lamella' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
