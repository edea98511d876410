"""``secret``: what is not to be seen in a list of processes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.objects.options import Object, ObjectOptions

#: Bytes of the longest.
_LONGEST = 1 << 20


class SecretOptions(ObjectOptions, frozen=True, kw_only=True, tag="secret"):
    """Options."""

    data: str | None = None
    file: str | None = None
    format: Literal["raw", "base64"] = "raw"

    def mistakes(self) -> Iterator[Mistake]:
        if (self.data is None) == (self.file is None):
            text = "'file' and 'data' are mutually exclusive"
            if self.data is None:
                text = "Either 'file' or 'data' must be provided"
            yield Mistake("data", text)

    def open(self) -> Secret:
        return Secret(self)

    def __repr__(self) -> str:
        return f"SecretOptions(id={self.id!r})"


class Secret(Object):
    """Read once."""

    missing = ("No secret with id '", "'")

    def __init__(self, options: SecretOptions) -> None:
        """QmpError: it cannot be read or decoded."""
        super().__init__(options)
        if options.file is None:
            data = (options.data or "").encode(errors="surrogateescape")
        else:
            data = _read(options.file)
        if options.format == "base64":
            try:
                data = base64.b64decode(b"".join(data.split()), validate=True)
            except binascii.Error:
                raise QmpError(f"secret '{options.id}': invalid base64 data") from None
        #: The secret itself.
        self.data = data


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise QmpError(f"Failed to open file “{path}”: {text}") from None
    if len(data) > _LONGEST:
        raise QmpError(f"{path}: more than {_LONGEST} bytes are no secret")
    return data
