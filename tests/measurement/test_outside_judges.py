"""Volumes of real structures against PyRadiomics' published baseline."""

import csv

import pytest

from lamella.io.format import open_labels
from lamella.measurement import measure_labels


@pytest.mark.parametrize("case", ["brain1", "brain2", "breast1", "lung1", "lung2"])
def test_volumes_equal_pyradiomics(data_dir, case):
    folder = data_dir / "medical" / "pyradiomics"
    with (folder / "baseline" / "baseline_shape.csv").open(newline="") as file:
        rows = {row["featureName"]: row[case] for row in csv.DictReader(file)}
    table = measure_labels(open_labels(folder / f"{case}_label.nrrd"))
    assert len(table) == 1
    expected = float(rows["original_shape_VoxelVolume"])
    assert float(table.volume[0]) == pytest.approx(expected, rel=1e-9)
    # Its surface is marching cubes on the mask, too large on these grids (3:1 to 9:1).
    mesh = float(rows["original_shape_SurfaceArea"])
    assert 0.7 * mesh < float(table.surface[0]) < mesh
