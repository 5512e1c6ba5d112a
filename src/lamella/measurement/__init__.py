"""Measuring objects: one pass over labels gives a table in physical units.

Nothing here imports torch; numba and pandas are imported when a function needs them.
"""

from lamella.measurement.confidence import mean_by_class, mean_by_object
from lamella.measurement.objects import MeasureOptions, measure_labels, measure_objects
from lamella.measurement.table import ObjectTable

__all__ = [
    "MeasureOptions",
    "ObjectTable",
    "mean_by_class",
    "mean_by_object",
    "measure_labels",
    "measure_objects",
]
