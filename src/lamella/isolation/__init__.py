"""Engines whose dependencies fight: an environment and a process of their own, one protocol."""
