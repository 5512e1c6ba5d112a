"""Tiled inference: plan → coarse preview → tiles → blend in a moving band → labels on disk.

The room knows networks only as :class:`~lamella.inference.runtime.Runtime` objects, inputs only as
:mod:`slabs <lamella.inference.slab>` and results only as layers of labels that are written once.
"""
