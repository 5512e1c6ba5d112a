"""A run as Python sees it: labels, objects and manifest of a run folder.

Example::

    run = lamella.segment("tomogram.mrc", model="membrane-3d")
    run.labels.shape, len(run.objects), run.manifest.status
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.errors import MissingPathError, RunError
from lamella.io.format import open_labels
from lamella.volume.labels import Labels
from lamella.wire.manifest import RunManifest
from lamella.workflows.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "origin_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is finished, or what there is of it.

    Attributes:
        folder: the run folder.
        manifest: what the run was.
        was_finished: whether everything was there already, and nothing had to be done.
    """

    folder: Path
    manifest: RunManifest
    was_finished: bool = False

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """The run of a folder, finished or not.

        Raises:
            MissingPathError: when there is no run.
            RunError: when its manifest is damaged.
        """
        known = RunFolder.existing(folder)
        manifest = known.read_manifest()
        assert manifest is not None
        return cls(known.path, manifest)

    @property
    def is_finished(self) -> bool:
        """Whether every planned tile is done and everything is on disk."""
        return self.manifest.status == "finished"

    @property
    def labels(self) -> Labels:
        """The result, lazy, exactly on the input's grid.

        Raises:
            RunError: when the run is not finished.
        """
        if not self.is_finished:
            raise RunError(
                f"the run {self.folder} is {self.manifest.status}:"
                f" {self.manifest.tiles_done} of {self.manifest.tiles_planned} tiles are done",
                hint=f"lamella resume {self.folder}",
            )
        labels = open_labels(self.folder / "labels.ome.zarr")
        return replace(labels, metadata={**labels.metadata, **origin_of(self.manifest)})

    @property
    def object_labels(self) -> Labels:
        """Ids of the objects, as in :attr:`objects`; the labels themselves for instances.

        Raises:
            MissingPathError: when objects were not told apart (``instances="none"``).
        """
        labels = self.labels
        if labels.is_instance:
            return labels
        path = RunFolder(self.folder).object_labels
        if not path.exists():
            raise MissingPathError(
                f"the run {self.folder} did not tell objects apart",
                hint='run it with instances="components"',
            )
        labels = open_labels(path)
        return replace(labels, metadata={**labels.metadata, **origin_of(self.manifest)})

    @property
    def preview(self) -> Labels:
        """The coarse labels of the first seconds.

        Raises:
            MissingPathError: when the run made none.
        """
        path = RunFolder(self.folder).preview
        if not path.exists():
            raise MissingPathError(f"the run {self.folder} has no preview")
        return open_labels(path)

    @property
    def objects(self) -> "pd.DataFrame":
        """One row an object, as in ``objects.csv``.

        Raises:
            MissingPathError: when the run has not come to measuring.
        """
        import pandas as pd

        path = RunFolder(self.folder).objects
        if not path.exists():
            raise MissingPathError(
                f"{path} is not there: the run is {self.manifest.status}",
                hint=f"lamella resume {self.folder}",
            )
        return pd.read_csv(path)

    @property
    def report(self) -> Path:
        """The report for people."""
        return RunFolder(self.folder).report


def origin_of(manifest: RunManifest) -> dict[str, str]:
    """What labels were made on and by what, for formats that refer to it (DICOM)."""
    source, model = manifest.request.input, manifest.model
    found = {
        "source_path": "" if source.path.startswith("memory:") else source.path,
        "source_series": source.series or "",
        "engine": model.engine,
        "model": model.id,
        "model_version": model.version,
    }
    return {name: value for name, value in found.items() if value}
