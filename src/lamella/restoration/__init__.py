"""Degraded images: how noisy and how blurred they are, and what can be done about it."""
