"""Every deliberate error of Lamella.

An error has a stable ``code`` (for the API and ``--json``), a message that says what came and
what was expected, and a ``hint`` that says what to do. Leaves also inherit the builtin that
people already catch::

    LamellaError
    ├── InputError (ValueError)                 invalid_input
    │   ├── UnreadableFileError                 unreadable_file
    │   ├── UnknownFormatError                  unknown_format
    │   ├── GeometryError                       invalid_geometry
    │   ├── AxesError                           axes_mismatch
    │   └── NarrowingError (OverflowError)      labels_do_not_fit
    ├── BoxOutOfBoundsError (IndexError)        box_out_of_bounds
    ├── MissingPathError (FileNotFoundError)    not_found
    ├── OutputExistsError (FileExistsError)     output_exists
    ├── StorageError (OSError)                  storage
    ├── MissingDependencyError (ImportError)    missing_dependency
    ├── UnknownIdError (LookupError)            unknown_id
    │   ├── UnknownModelError                   unknown_model
    │   └── UnknownEngineError                  unknown_engine
    ├── ModelError                              invalid_model
    ├── LicenceError                            licence_not_accepted
    ├── DownloadError (OSError)                 download_failed
    │   └── OfflineError                        offline
    ├── EngineError                             engine_failed
    ├── DeviceError                             device_unavailable
    │   └── DeviceMemoryError (MemoryError)     device_out_of_memory
    ├── RunError                                run_failed
    ├── RunCancelledError                       cancelled
    ├── UnauthenticatedError                    unauthenticated
    ├── ForbiddenError                          forbidden
    ├── ConflictError                           conflict
    ├── GoneError                               gone
    ├── QuotaError                              quota_exceeded
    ├── TooManyRequestsError                    too_many_requests
    ├── ChecksumError                           checksum_mismatch
    └── ServerConnectionError (ConnectionError)  no_connection

Examples:
    >>> try:
    ...     raise GeometryError("spacing is 0 along z", hint="set it with --spacing")
    ... except ValueError as error:
    ...     print(error.code, "|", error.message, "|", error.hint)
    invalid_geometry | spacing is 0 along z | set it with --spacing
"""

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "AxesError",
    "BoxOutOfBoundsError",
    "ChecksumError",
    "ConflictError",
    "DeviceError",
    "DeviceMemoryError",
    "DownloadError",
    "EngineError",
    "ForbiddenError",
    "GeometryError",
    "GoneError",
    "InputError",
    "LamellaError",
    "LicenceError",
    "MissingDependencyError",
    "MissingPathError",
    "ModelError",
    "NarrowingError",
    "OfflineError",
    "OutputExistsError",
    "QuotaError",
    "RunCancelledError",
    "RunError",
    "ServerConnectionError",
    "StorageError",
    "TooManyRequestsError",
    "UnauthenticatedError",
    "UnknownEngineError",
    "UnknownFormatError",
    "UnknownIdError",
    "UnknownModelError",
    "UnreadableFileError",
]


class LamellaError(Exception):
    """Base of every deliberate error.

    Args:
        message: what came and what was expected, one or two sentences.
        hint: what to do about it.
        details: facts for programs (JSON values).
    """

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    # OSError and ImportError define __str__ from their own arguments; one text everywhere.
    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.details))


def _rebuild(
    kind: type[LamellaError], message: str, hint: str | None, details: dict[str, Any]
) -> LamellaError:
    return kind(message, hint=hint, details=details)


class InputError(LamellaError, ValueError):
    """A value, option or file that cannot be used as given."""

    code = "invalid_input"


class UnreadableFileError(InputError):
    """A file of a known format that is truncated, corrupt or not what it claims to be."""

    code = "unreadable_file"


class UnknownFormatError(InputError):
    """A file that no reader recognises, or a suffix that no writer has."""

    code = "unknown_format"


class GeometryError(InputError):
    """Spacing, origin, direction or slice positions that make no regular grid."""

    code = "invalid_geometry"


class AxesError(InputError):
    """Axes that are impossible, or that do not fit what an operation or a model needs."""

    code = "axes_mismatch"


class NarrowingError(InputError, OverflowError):
    """Values that do not fit into the data type of a file format."""

    code = "labels_do_not_fit"


class BoxOutOfBoundsError(LamellaError, IndexError):
    """A box that reaches outside the volume."""

    code = "box_out_of_bounds"


class MissingPathError(LamellaError, FileNotFoundError):
    """A path that does not exist."""

    code = "not_found"


class OutputExistsError(LamellaError, FileExistsError):
    """An output that is already there and may not be replaced unasked."""

    code = "output_exists"


class StorageError(LamellaError, OSError):
    """The disk is full, or a path may not be read or written."""

    code = "storage"


class MissingDependencyError(LamellaError, ImportError):
    """A feature whose optional package is not installed here."""

    code = "missing_dependency"


class UnknownIdError(LamellaError, LookupError):
    """An id that no registry knows."""

    code = "unknown_id"


class UnknownModelError(UnknownIdError):
    """A model id that neither the shipped nor the user's models contain."""

    code = "unknown_model"


class UnknownEngineError(UnknownIdError):
    """An engine id that is not registered."""

    code = "unknown_engine"


class ModelError(LamellaError):
    """A model folder that is incomplete, changed or contradictory."""

    code = "invalid_model"


class LicenceError(LamellaError):
    """A model whose licence has to be accepted first."""

    code = "licence_not_accepted"


class DownloadError(LamellaError, OSError):
    """Files that no address gave whole and right; what came is kept where it can be trusted."""

    code = "download_failed"


class OfflineError(DownloadError):
    """The network is needed and was forbidden."""

    code = "offline"


class EngineError(LamellaError):
    """An engine that failed while it ran."""

    code = "engine_failed"


class DeviceError(LamellaError):
    """A device that was asked for and is not there."""

    code = "device_unavailable"


class DeviceMemoryError(DeviceError, MemoryError):
    """A device whose memory is too small for what was asked of it."""

    code = "device_out_of_memory"


class RunError(LamellaError):
    """A run that cannot go on."""

    code = "run_failed"


class RunCancelledError(LamellaError):
    """A run that was told to stop; what is finished is kept and can be resumed."""

    code = "cancelled"


class UnauthenticatedError(LamellaError):
    """A request without a valid token."""

    code = "unauthenticated"


class ForbiddenError(LamellaError):
    """Something that this token's role does not allow."""

    code = "forbidden"


class ConflictError(LamellaError):
    """A request that contradicts the state of what it is about."""

    code = "conflict"


class GoneError(LamellaError):
    """Something that was there and was removed or has expired."""

    code = "gone"


class QuotaError(LamellaError):
    """More than a user, or the server, may hold."""

    code = "quota_exceeded"


class TooManyRequestsError(LamellaError):
    """More requests than a user may send; ``details["retry_after_s"]`` says how long to wait."""

    code = "too_many_requests"


class ChecksumError(LamellaError):
    """Bytes whose checksum is not the one that was announced."""

    code = "checksum_mismatch"


class ServerConnectionError(LamellaError, ConnectionError):
    """A server that cannot be reached, or that is not the one expected."""

    code = "no_connection"
