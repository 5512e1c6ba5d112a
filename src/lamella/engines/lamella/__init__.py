"""The engine for this project's own model folders."""
