"""The one path from a request to a run folder, and the functions of ``import lamella``."""
