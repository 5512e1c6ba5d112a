"""Real files of microscopes and programs, each with what a person found in it.

The table names the file, its shape, type, spacing and the notes a user must see; every file of
these formats in the data folder is in it, so a new file cannot go unjudged.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lamella.core.errors import LamellaError
from lamella.io import OpenOptions, SaveOptions, open_volume, save_volume


class Expected(NamedTuple):
    axes: str
    shape: tuple[int, ...]
    dtype: str
    spacing: str
    notes: tuple[str, ...] = ()


NO = ("spacing_missing",)
POINTS = ("looks_like_points", *NO)
Z_NO = ("axes_assumed", "spacing_missing")
VOXEL2 = "1 x 1 voxel"
VOXEL3 = "1 x 1 x 1 voxel"
EMD3001 = Expected(
    "zyx",
    (73, 25, 43),
    "float32",
    "0.045875 x 0.03925 x 0.044825 nm",
    ("axes_turned", "oblique_cell"),
)
EMD3197 = Expected("zyx", (20, 20, 20), "float32", "1.14 x 1.14 x 1.14 nm")
TARDIS2 = Expected("yx", (64, 32), "uint8", "2.32 x 2.32 nm", ("unsigned_bytes",))
TARDIS3 = Expected("zyx", (78, 64, 32), "uint8", "2.32 x 2.32 x 2.32 nm", ("unsigned_bytes",))
CROP = Expected("zyx", (96, 96, 96), "uint8", VOXEL3, Z_NO)
STARDIST3 = Expected("zyx", (31, 61, 57), "uint16", VOXEL3, Z_NO)
CONFOCAL = Expected("yx", (512, 512), "uint8", VOXEL2, NO)
SLICES = Expected("zyx", (20, 1024, 1024), "uint8", VOXEL3, NO)
BINARY_SLICES = Expected("zyx", (20, 1024, 1024), "uint8", VOXEL3, ("bilevel", *NO))
GALA = (50, 100, 200)
VIV = Expected("yx", (167, 439), "uint8", VOXEL2, NO)
VIV_OME = Expected("cyx", (3, 167, 439), "int8", VOXEL2, NO)

TABLE = {
    "cryoet/cryocat/tilt_stack.mrc": Expected("zyx", (4, 240, 232), "float32", VOXEL3, NO),
    "cryoet/cylindra/13pf_MT.tif": Expected(
        "zyx", (36, 206, 94), "uint8", "1.052 x 1.052 x 1.052 nm"
    ),
    "cryoet/cylindra/beta-tubulin.mrc": Expected(
        "zyx", (20, 20, 20), "float32", "0.5144 x 0.5144 x 0.5144 nm"
    ),
    "cryoet/mrcfile/EMD-3001.map": EMD3001,
    "cryoet/mrcfile/EMD-3001.map.bz2": EMD3001,
    "cryoet/mrcfile/emd_3001.map.gz": EMD3001,
    "cryoet/mrcfile/EMD-3197.map": EMD3197,
    "cryoet/mrcfile/EMD-3197.map.bz2": EMD3197,
    "cryoet/mrcfile/emd_3197.map.gz": EMD3197,
    "cryoet/mrcfile/emd_3197.png": Expected(
        "yx", (500, 500), "uint8", VOXEL2, ("grey_as_color", *NO)
    ),
    "cryoet/tardis/cnn/train/imgs/0_0_30_47_25.tif": CROP,
    "cryoet/tardis/cnn/train/imgs/3_0_25_54_25.tif": CROP,
    "cryoet/tardis/cnn/train/masks/0_0_30_47_25_mask.tif": CROP,
    "cryoet/tardis/cnn/train/masks/3_0_25_54_25_mask.tif": CROP,
    # Lists of points, which look like images of 3 and 4 columns.
    "cryoet/tardis/data_type/coord2D.npy": Expected("yx", (121, 3), "float64", VOXEL2, POINTS),
    "cryoet/tardis/data_type/coord3D.npy": Expected("yx", (121, 4), "float64", VOXEL2, POINTS),
    "cryoet/tardis/data_type/mrc2D.mrc": TARDIS2,
    "cryoet/tardis/data_type/rec2D.rec": TARDIS2,
    "cryoet/tardis/data_type/mrc3D.mrc": TARDIS3,
    "cryoet/tardis/data_type/rec3D.rec": TARDIS3,
    "cryoet/tardis/data_type/tif2D.tif": Expected("yx", (64, 32), "uint8", VOXEL2, NO),
    "cryoet/tardis/data_type/tif3D.tif": Expected("zyx", (78, 64, 32), "uint8", VOXEL3, Z_NO),
    "denoising/noise2fast/Confocal/BPAE_B.tif": CONFOCAL,
    "denoising/noise2fast/Confocal/BPAE_G.tif": CONFOCAL,
    "denoising/noise2fast/Confocal_gaussianpoisson/BPAE_B.tif": CONFOCAL,
    "denoising/noise2fast/Confocal_gaussianpoisson/BPAE_G.tif": CONFOCAL,
    "em/axondeepseg_sem/sub-rat1/micr/sub-rat1_sample-data1_SEM.png": Expected(
        "yx", (924, 1278), "uint8", "0.18 x 0.18 um", ("spacing_from_sidecar",)
    ),
    "em/axondeepseg_sem/sub-rat2/micr/sub-rat2_sample-data5_SEM.png": Expected(
        "yx", (954, 1280), "uint8", "0.093 x 0.093 um", ("spacing_from_sidecar",)
    ),
    "em/axondeepseg_sem/sub-rat3/micr/sub-rat3_sample-data9_SEM.png": Expected(
        "yx", (756, 764), "uint8", "0.1 x 0.1 um", ("spacing_from_sidecar",)
    ),
    "em/axondeepseg_sem/sub-rat3/micr/sub-rat3_sample-data10_SEM.png": Expected(
        "yx", (758, 737), "uint8", "0.1 x 0.1 um", ("spacing_from_sidecar",)
    ),
    "em/axondeepseg_sem/sub-rat3/micr/sub-rat3_sample-data11_SEM.png": Expected(
        "yx", (839, 769), "uint8", "0.1 x 0.1 um", ("spacing_from_sidecar",)
    ),
    "em/drosophila_vnc/stack1/labels": SLICES,
    "em/drosophila_vnc/stack1/membranes": BINARY_SLICES,
    "em/drosophila_vnc/stack1/mitochondria": SLICES,
    "em/drosophila_vnc/stack1/raw": SLICES,
    "em/drosophila_vnc/stack1/synapses": BINARY_SLICES,
    "em/gala/snemi-mini/train-fragments.tif": Expected(
        "zyx", (32, 160, 160), "uint16", VOXEL3, Z_NO
    ),
    "em/gala/snemi-mini/train-labels.tif": Expected("zyx", (32, 160, 160), "uint8", VOXEL3, Z_NO),
    "em/gala/snemi-mini/train-probabilities.tif": Expected(
        "zyx", (32, 160, 160), "uint8", VOXEL3, Z_NO
    ),
    "em/gala/train-gt.lzf.h5": Expected("zyx", GALA, "int32", VOXEL3, NO),
    "em/gala/train-image.h5": Expected("zyx", GALA, "uint8", VOXEL3, NO),
    "em/gala/train-p1.lzf.h5": Expected("zyx", GALA, "float32", VOXEL3, NO),
    "em/gala/train-ws.lzf.h5": Expected("zyx", GALA, "int32", VOXEL3, NO),
    "fluorescence/plantseg/rgb_3D.tif": Expected("czyx", (2, 75, 75, 75), "uint16", VOXEL3, Z_NO),
    "fluorescence/plantseg/sample_ovule.h5": Expected(
        "zyx", (32, 128, 128), "uint8", "0.235 x 0.15 x 0.15 um", ("dataset_chosen",)
    ),
    "fluorescence/stardist/data_images/histo.jpg": Expected(
        "cyx", (3, 300, 500), "uint8", VOXEL2, ("color_samples", *NO)
    ),
    "fluorescence/stardist/data_images/img2d.tif": Expected("yx", (512, 512), "uint16", VOXEL2, NO),
    "fluorescence/stardist/data_images/mask2d.tif": Expected(
        "yx", (512, 512), "uint16", VOXEL2, NO
    ),
    "fluorescence/stardist/data_images/img3d.tif": STARDIST3,
    "fluorescence/stardist/data_images/mask3d.tif": STARDIST3,
    "fluorescence/stardist/tests_data/img2d.tif": Expected("yx", (256, 256), "uint8", VOXEL2, NO),
    "fluorescence/stardist/tests_data/mask2d.tif": Expected("yx", (256, 256), "uint16", VOXEL2, NO),
    "fluorescence/stardist/tests_data/img3d.tif": STARDIST3,
    "fluorescence/stardist/tests_data/mask3d.tif": STARDIST3,
    "odd_formats/viv/fixtures/multi-tiff/Channel_0.tif": VIV,
    "odd_formats/viv/fixtures/multi-tiff/Channel_1.tif": VIV,
    "odd_formats/viv/fixtures/multi-tiff/Channel_2.tif": VIV,
    "odd_formats/viv/fixtures/multi-channel.ome.tif": VIV_OME,
    "odd_formats/viv/multi-channel.ome.tif": VIV_OME,
}

# Judged as families below: the same for every file of a folder.
FAMILIES = (
    "em/drosophila_vnc/stack1/",
    "em/axondeepseg_sem/derivatives/",
    "fluorescence/dsb2018_D/",
    "odd_formats/neuroglancer_testdata/codec/npy/",
)
SUFFIXES = (
    *(".mrc", ".map", ".rec", ".st", ".map.gz", ".map.bz2"),
    *(".tif", ".tiff", ".h5", ".png", ".jpg", ".bmp", ".npy"),
)


@pytest.mark.parametrize("name", TABLE)
def test_every_file_opens_as_a_person_reads_it(data_dir: Path, name: str) -> None:
    volume = open_volume(data_dir / name)
    found = Expected(
        str(volume.axes),
        volume.shape,
        str(volume.dtype),
        str(volume.spacing),
        tuple(sorted(note.code for note in volume.notes)),
    )
    assert found == TABLE[name]._replace(notes=tuple(sorted(TABLE[name].notes)))
    middle = tuple(slice(n // 2, n // 2 + 1) for n in volume.shape)
    assert np.asarray(volume.data[middle]).shape == (1,) * len(volume.shape)


def test_no_file_goes_unjudged(data_dir: Path) -> None:
    found = {
        path.relative_to(data_dir).as_posix()
        for part in ("cryoet", "denoising", "em", "fluorescence", "odd_formats")
        for path in (data_dir / part).rglob("*")
        if path.is_file() and path.name.lower().endswith(SUFFIXES)
    }
    unjudged = {name for name in found if name not in TABLE and not name.startswith(FAMILIES)}
    assert unjudged == set()


def test_families(data_dir: Path) -> None:
    for path in sorted((data_dir / "fluorescence/dsb2018_D").iterdir()):
        volume = open_volume(path)
        is_color = "bright" in path.name and path.suffix == ".png"
        assert str(volume.axes) == ("cyx" if is_color else "yx"), path.name
        assert volume.dtype == (np.uint16 if path.suffix == ".tif" else np.uint8), path.name
    for path in (data_dir / "em/axondeepseg_sem/derivatives").rglob("*.png"):
        assert str(open_volume(path).axes) == "yx"
    for path in (data_dir / "odd_formats/neuroglancer_testdata/codec/npy").glob("*.npy"):
        assert_array_equal(open_volume(path).load(), np.load(path))


def test_unsigned_bytes_equal_their_tiff(data_dir: Path) -> None:
    folder = data_dir / "cryoet/tardis/data_type"
    tomogram = open_volume(folder / "mrc3D.mrc").load()
    assert_array_equal(tomogram, open_volume(folder / "tif3D.tif").load())
    assert_array_equal(tomogram, open_volume(folder / "rec3D.rec").load())
    flat = open_volume(folder / "mrc2D.mrc").load()
    assert_array_equal(flat, open_volume(folder / "tif2D.tif").load())


def test_packed_twins_agree(data_dir: Path) -> None:
    folder = data_dir / "cryoet/mrcfile"
    for stem in ("3001", "3197"):
        plain = open_volume(folder / f"EMD-{stem}.map")
        for twin in (f"EMD-{stem}.map.bz2", f"emd_{stem}.map.gz"):
            other = open_volume(folder / twin)
            assert_array_equal(other.load(), plain.load())
            assert other.affine == plain.affine


def test_mrcfile_agrees(data_dir: Path) -> None:
    import mrcfile

    for name in ("cylindra/beta-tubulin.mrc", "mrcfile/EMD-3197.map", "mrcfile/EMD-3001.map"):
        path = data_dir / "cryoet" / name
        with mrcfile.open(path) as file:
            columns, rows, sections = (int(file.header[k]) - 1 for k in ("mapc", "mapr", "maps"))
            # File axes (sections, rows, columns) by world letter, then z, y, x.
            letters = (sections, rows, columns)
            expected = np.asarray(file.data).transpose([letters.index(k) for k in (2, 1, 0)])
            size = file.voxel_size
        volume = open_volume(path)
        assert_array_equal(volume.load(), expected)
        np.testing.assert_allclose(
            volume.spacing.values, (size.z / 10, size.y / 10, size.x / 10), rtol=1e-6
        )


def test_labels_of_plantseg_are_chosen_by_name(data_dir: Path) -> None:
    path = data_dir / "fluorescence/plantseg/sample_ovule.h5"
    labels = open_volume(path, OpenOptions(dataset="label"))
    assert labels.dtype == np.uint16
    assert len(np.unique(labels.load())) in (50, 51)


@pytest.mark.parametrize("name", ["am2D.am", "am3D.am", "am3D.CorrelationLines.am"])
def test_amira_is_one_clear_error(data_dir: Path, name: str) -> None:
    with pytest.raises(LamellaError, match="no format recognises") as caught:
        open_volume(data_dir / "cryoet/tardis/data_type" / name)
    assert caught.value.hint


def test_a_packed_picture_says_so(data_dir: Path) -> None:
    with pytest.raises(LamellaError) as caught:
        open_volume(data_dir / "cryoet/mrcfile/emd_3197.png.gz")
    assert "unpack it first" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["cryoet/cylindra/13pf_MT.tif", "cryoet/tardis/data_type/mrc3D.mrc"]
)
@pytest.mark.parametrize("suffix", [".mrc", ".mrc.gz", ".ome.tif", ".h5", ".npy", ""])
def test_conversion_keeps_voxels_and_spacing(
    data_dir: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    volume = open_volume(data_dir / name)
    path = save_volume(
        volume, tmp_path / f"out{suffix}", SaveOptions(format=None if suffix else "raster")
    )
    again = open_volume(path)
    assert_array_equal(again.load(), volume.load())
    assert again.spacing == volume.spacing
    assert again.same_grid(volume)
