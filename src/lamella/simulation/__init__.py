"""Simulated volumes whose every voxel is known: cryo-electron tomograms and nuclei."""
