"""npy and HDF5 keep everything: their record says what they cannot."""

from lamella.testing.io import FormatContract


class TestNpy(FormatContract):
    format_id = "npy"
    suffix = ".npy"
    dtypes = ("bool", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float64")
    axes = ("zyx", "yx", "czyx", "tczyx", "tyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True


class TestHdf5(FormatContract):
    format_id = "hdf5"
    suffix = ".h5"
    dtypes = ("bool", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float64")
    axes = ("zyx", "yx", "czyx", "tczyx", "tyx")
    units = ("nm", "um", "mm", "voxel")
    frames = ("stage", "RAS")
    directions = "rotations"
    keeps_channel_names = True
    keeps_label_classes = True
