"""OME-TIFF keeps what it can hold."""

from lamella.testing.io import FormatContract


class TestOmeTiff(FormatContract):
    format_id = "tiff"
    suffix = ".ome.tif"
    dtypes = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
    axes = ("zyx", "yx", "czyx", "tczyx", "cyx", "tyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True
    narrowing = (("uint64", 2**40), ("int64", -(2**40)))
