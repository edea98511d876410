"""Recordings by the names that a person gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vduse.channel.recording import Reader, RecordingError
from vduse.daemon.errors import UserError, image_error


@contextmanager
def opened(path: str) -> Iterator[Reader]:
    """The recording in a file, for the time of the block; a pipe is one, too. UserError: it cannot
    be read, or is none, and what the block finds wrong with it."""
    try:
        with open(path, "rb") as file:
            yield Reader(file, path)
    except RecordingError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise image_error(path, error) from None
