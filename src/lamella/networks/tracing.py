"""Whether a network runs or is written down: checks of sizes have no place in a graph."""

__all__ = ["is_traced"]


def is_traced() -> bool:
    """Whether torch is tracing or compiling what runs now (imports torch)."""
    import torch
    from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]

    return is_tracing() or torch.compiler.is_compiling()
