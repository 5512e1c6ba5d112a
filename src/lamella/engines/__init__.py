"""Engines: whatever turns a volume into labels, listed as data and imported when a job runs."""
