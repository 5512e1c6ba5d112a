"""Versioned documents: the same request, event, card and manifest in every process.

Each document carries ``format_version``; an unknown key is an error, so a typing mistake never
changes a result in silence.
"""
