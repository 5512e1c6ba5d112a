"""Pictures and folders of slices keep whole numbers of 8 and 16 bits, and all geometry."""

from lamella.testing.io import FormatContract


class TestPng(FormatContract):
    format_id = "raster"
    suffix = ".png"
    is_lazy = False
    is_streaming = False
    dtypes = ("uint8", "uint16")
    axes = ("yx", "cyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True
    narrowing = (("uint32", 70_000), ("int16", -1))


class TestSlices(FormatContract):
    format_id = "raster"
    suffix = ""
    is_folder = True
    dtypes = ("uint8", "uint16")
    axes = ("zyx", "czyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True
    narrowing = (("uint32", 70_000),)
