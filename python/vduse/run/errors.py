"""What keeps a program from being run."""

from __future__ import annotations


class ProgramError(Exception):
    """The program cannot be run like this; the message says why, and what helps, in one line."""
