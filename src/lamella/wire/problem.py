"""An error as a document (RFC 9457 in spirit): a stable code, a message, a hint."""

from pydantic import Field

from lamella.core import errors
from lamella.core.errors import LamellaError
from lamella.core.storage import is_disk_full, storage_error
from lamella.wire.document import Document, JsonValue

__all__ = ["Problem"]


class Problem(Document):
    """What went wrong, for programs and people.

    Examples:
        >>> problem = Problem.from_error(errors.GeometryError("spacing is 0", hint="--spacing"))
        >>> problem.code, type(problem.to_error()).__name__
        ('invalid_geometry', 'GeometryError')
    """

    code: str
    message: str
    hint: str | None = None
    details: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def from_error(cls, error: BaseException) -> "Problem":
        """The document of an error; what is not ours becomes ``internal_error``."""
        if isinstance(error, OSError) and is_disk_full(error):
            error = storage_error(error)
        if isinstance(error, LamellaError):
            return cls(
                code=error.code, message=error.message, hint=error.hint, details=error.details
            )
        return cls(
            code="internal_error",
            message=f"{type(error).__name__}: {error}",
            hint="this is a defect in Lamella: please report it with the traceback",
        )

    def to_error(self) -> LamellaError:
        """The error again, as the same class where the code is known."""
        kind = _BY_CODE.get(self.code, LamellaError)
        return kind(self.message, hint=self.hint, details=self.details)


_BY_CODE: dict[str, type[LamellaError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LamellaError)
}
