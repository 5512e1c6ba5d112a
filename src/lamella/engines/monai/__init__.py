"""The engine for MONAI bundles."""
