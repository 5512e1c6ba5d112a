"""How sure the networks are, carried along with their labels back to the input's grid.

Loaded by ``worker.py`` inside the environment of the package. Maps are uint8, (m, x, y, z) in the
order of NIfTI, 255 = 1.0. They are made from the logits on the network's grid and go the way of
the labels, voxel for voxel: nearest neighbour, the same turns, the same crop.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Follower", "measure"]

MARGIN = 20
"""Voxels by which the package lets the thirds of a very long image overlap."""


class Follower:
    """The maps of one pass; does nothing where no measures are asked for."""

    def __init__(self, measures: list[str]) -> None:
        self.measures = measures
        self.maps: Any = None
        self._merged: dict[str, tuple[Any, Any]] = {}

    def begin(self) -> None:
        """Another image: the crop's, then the task's."""
        self.maps = None
        self._merged = {}

    def of_part(self, predictor: Any, logits: Any, properties: dict[str, Any]) -> Any:
        """Maps on the grid of a part's labels, from the logits on the network's grid."""
        is_softmax = not predictor.label_manager.has_regions
        maps = measure(logits, self.measures, is_softmax=is_softmax)
        maps = _nearest(maps, properties["shape_after_cropping_and_before_resampling"])
        whole = self._sure(properties["shape_before_cropping"])
        box = tuple(slice(int(a), int(b)) for a, b in properties["bbox_used_for_cropping"])
        whole[(slice(None), *box)] = maps
        back = [axis + 1 for axis in predictor.plans_manager.transpose_backward]
        return np.ascontiguousarray(whole.transpose(0, *back).transpose(0, 3, 2, 1))

    def merge(self, name: str, folder: Path) -> None:
        """Join the maps of a part with those of the parts before it, as their labels are joined."""
        nib: Any = import_module("nibabel")
        path = folder / f"{name}.npy"
        if not self.measures or not path.is_file():
            return
        maps = np.load(path)
        found = np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) != 0
        if name not in self._merged:
            self._merged[name] = (maps, found)
            return
        earlier, taken = self._merged[name]
        empty = ~found & ~taken
        for k, kind in enumerate(self.measures):
            # Background is what every part calls background: as sure as the least sure of them.
            choose = np.maximum if kind == "entropy" else np.minimum
            earlier[k][empty] = choose(earlier[k], maps[k])[empty]
            earlier[k][found] = maps[k][found]
        self._merged[name] = (earlier, taken | found)

    def resample(self, shape: tuple[int, ...]) -> None:
        """The labels were stretched to a shape, by the package's ``ndimage.zoom`` of order 0."""
        ndimage: Any = import_module("scipy.ndimage")
        self._collect()
        if self.maps is None:
            return
        for axis, length in enumerate(shape, start=1):
            n = self.maps.shape[axis]
            if n != length:
                pick = ndimage.zoom(np.arange(n), length / n, order=0, mode="nearest")
                self.maps = np.take(self.maps, pick, axis=axis)

    def turn(self, undo_canonical: Any, image: Any, original: Any) -> None:
        """The labels were turned to the input's orientation."""
        nib: Any = import_module("nibabel")
        self._collect()
        if self.maps is not None:
            turned = [undo_canonical(nib.Nifti1Image(m, image.affine), original) for m in self.maps]
            self.maps = np.stack([np.asarray(one.dataobj) for one in turned])

    def paste(self, shape: tuple[int, ...], box: Any) -> None:
        """The labels of a crop were put back into the input's shape."""
        if self.maps is not None:
            whole = self._sure(shape)
            whole[(slice(None), *(slice(int(a), int(b)) for a, b in box))] = self.maps
            self.maps = whole

    def _collect(self) -> None:
        """The maps of the whole image, its thirds put together as the package does."""
        if self.maps is not None or not self._merged:
            return
        maps = [self._merged[name][0] for name in sorted(self._merged)]
        if len(maps) == 3:
            maps = [
                maps[0][..., :-MARGIN],
                maps[1][..., MARGIN - 1 : -MARGIN],
                maps[2][..., MARGIN - 1 :],
            ]
        self.maps = np.concatenate(maps, axis=3)
        self._merged = {}

    def _sure(self, shape: Any) -> Any:
        """Maps where nobody looked: background for certain."""
        whole = np.empty((len(self.measures), *(int(n) for n in shape)), np.uint8)
        for k, kind in enumerate(self.measures):
            whole[k] = 0 if kind == "entropy" else 255
        return whole


def measure(logits: Any, measures: list[str], *, is_softmax: bool) -> Any:
    """How sure a network is of every voxel.

    Args:
        logits: float16 or float32, (c, z, y, x).
        measures: "probability" of the best class, "margin" to the second, "entropy" over log c.
        is_softmax: False for regions, which may overlap.

    Returns:
        uint8, (m, z, y, x), 255 = 1.0.
    """
    import torch

    maps = np.empty((len(measures), *logits.shape[1:]), np.uint8)
    for z in range(logits.shape[1]):
        values = torch.from_numpy(np.asarray(logits[:, z], dtype=np.float32))
        if is_softmax:
            chances = torch.softmax(values, dim=0)
        else:
            # Each region says yes or no; background is what none of them wants.
            yes = torch.sigmoid(values)
            chances = torch.cat([(1 - yes).amin(dim=0, keepdim=True), yes])
            chances = chances / chances.sum(dim=0, keepdim=True)
        n_classes = chances.shape[0]
        best = torch.topk(chances, min(2, n_classes), dim=0).values
        for k, kind in enumerate(measures):
            if kind == "probability":
                found = best[0]
            elif kind == "margin":
                found = best[0] - best[-1]
            else:
                spread = -(chances * torch.log(chances.clamp_min(1e-12))).sum(dim=0)
                found = spread / float(np.log(max(2, n_classes)))
            maps[k, z] = torch.round(found.clamp(0, 1) * 255).to(torch.uint8).numpy()
    return maps


def _nearest(maps: Any, shape: Any) -> Any:
    """Stretch maps over another grid of the same extent."""
    for axis, length in enumerate(shape, start=1):
        n = maps.shape[axis]
        if n != length:
            at = ((np.arange(int(length)) + 0.5) * n / int(length)).astype(int)
            maps = np.take(maps, np.minimum(at, n - 1), axis=axis)
    return maps
