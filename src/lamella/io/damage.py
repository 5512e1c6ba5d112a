"""One error for damaged files, whatever the library underneath thinks of them.

Parsers of binary formats meet damaged bytes with dozens of exception types (``struct.error``,
``KeyError``, ``IndexError``, ``ZeroDivisionError``, their own). Around a parser, and nowhere
else, all of them mean the same: the file is not what it claims to be.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamella.core.errors import LamellaError, UnreadableFileError

__all__ = ["damage_named", "packed_reason"]


@contextmanager
def damage_named(path: Path, kind: str) -> Iterator[None]:
    """Turn what a parser raises into one :class:`UnreadableFileError`.

    Errors of the operating system (permission, disk) pass: they are not the file's fault.

    Args:
        path: the file being parsed.
        kind: its format, for the message.

    Raises:
        UnreadableFileError: for anything the parser raised.
    """
    try:
        yield
    except LamellaError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {reason[0][:200]}" if reason else type(error).__name__
        raise UnreadableFileError(
            f"{path.name} is a damaged or unsupported {kind} file ({what})",
            hint="copy or download the file again, or open it in the program that wrote it",
        ) from error


def packed_reason(path: Path) -> str | None:
    """Why a file is not of a format that is never packed: it is a gzip or bzip2 archive; or None.

    ``probe`` gets a file's first bytes unpacked, so a format that cannot read packed files must
    look at the file itself.
    """
    if path.suffix.lower() not in (".gz", ".bz2") or not path.is_file():
        return None
    with path.open("rb") as stream:
        magic = stream.read(3)
    if magic[:2] == b"\x1f\x8b" or magic == b"BZh":
        return f"it is packed: unpack it first, for example to {path.stem}"
    return None
