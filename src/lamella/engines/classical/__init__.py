"""Segmentation without weights: threshold, blobs, watershed."""
