"""Cellpose 3 and 4, each in an environment and a process of its own."""
