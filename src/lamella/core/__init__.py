"""The lowest room: errors, progress and cancellation, optional imports, registries.

Nothing here knows about images, and nothing here imports more than the standard library.
"""
