"""The engine for models of nnU-Net v2."""
