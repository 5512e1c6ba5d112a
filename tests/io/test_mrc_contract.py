"""MRC keeps what it can hold."""

from lamella.testing.io import FormatContract


class TestMrc(FormatContract):
    format_id = "mrc"
    suffix = ".mrc"
    dtypes = ("int8", "int16", "uint16", "float16", "float32", "complex64")
    axes = ("zyx", "yx", "tzyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    narrowing = (("uint32", 70_000), ("int64", -40_000), ("uint64", 2**40))


class TestMrcGz(FormatContract):
    format_id = "mrc"
    suffix = ".mrc.gz"
    is_lazy = False
    dtypes = ("int8", "float32")


class TestMrcBz2(FormatContract):
    format_id = "mrc"
    suffix = ".rec.bz2"
    is_streaming = False  # the same code as .mrc.gz; bzip2 takes five seconds
    is_lazy = False
    dtypes = ("uint16",)
