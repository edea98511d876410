"""What goes wrong in QMP, as its clients see it.

QmpError              an error object: a class of QEMU's (:class:`ErrorClass`) and one line
  CommandNotFound     CommandNotFound: no such command, or not now
  DeviceNotFound      DeviceNotFound: no object of that path
  ArgumentError       GenericError: arguments that do not fit their model
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorClass(StrEnum):
    """QapiErrorClass of QEMU's qapi/error.json, those in use here."""

    GENERIC = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"
    DEVICE_NOT_FOUND = "DeviceNotFound"


class QmpError(Exception):
    """What a handler raises to answer with an error; the message is ``desc``, for a person."""

    error_class = ErrorClass.GENERIC

    def answer(self) -> dict[str, Any]:
        """The error object."""
        return {"class": str(self.error_class), "desc": str(self)}


class CommandNotFound(QmpError):
    """No such command, or not now."""

    error_class = ErrorClass.COMMAND_NOT_FOUND


class DeviceNotFound(QmpError):
    """No object of that path."""

    error_class = ErrorClass.DEVICE_NOT_FOUND


class ArgumentError(QmpError):
    """An argument that is missing, unknown, or out of its type; names it."""
