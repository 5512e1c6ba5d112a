"""What all documents share, and how they are read from JSON with errors that teach."""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from lamella.core.errors import InputError, LamellaError, MissingPathError

__all__ = ["Document", "JsonValue"]


class Document(BaseModel):
    """Base of every wire document: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")

    @classmethod
    def parse_json(
        cls, text: str | bytes, *, what: str, error: type[LamellaError] = InputError
    ) -> Self:
        """A document from JSON text.

        Args:
            text: JSON.
            what: what it is and where it came from, for messages.
            error: raised when it does not validate.

        Raises:
            LamellaError: of the kind ``error``, listing every field that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as invalid:
            problems = [
                f"{'.'.join(str(part) for part in item['loc']) or 'document'}: {item['msg']}"
                for item in invalid.errors()
            ]
            raise error(
                f"{what} is not a valid {cls.__name__}: " + "; ".join(problems[:5]),
                hint="correct the named fields; unknown fields are refused",
                details={"problems": problems},
            ) from None

    @classmethod
    def read(cls, path: Path, *, error: type[LamellaError] = InputError) -> Self:
        """A document from a JSON file.

        Raises:
            MissingPathError: when there is no such file.
            LamellaError: of the kind ``error`` when it does not validate.
        """
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise MissingPathError(f"there is no {path}") from None
        return cls.parse_json(text, what=str(path), error=error)

    def to_json(self) -> str:
        """Indented JSON, keys in the order of the class, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
