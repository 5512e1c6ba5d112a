"""Data of the CellMap segmentation challenge: classes, geometry in nanometres, crops."""
