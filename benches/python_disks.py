"""Disks written in Python that are measured beside the examples' RAM disk."""

from __future__ import annotations

from vduse.backends.python import IoBatch, PythonBackend


class Nothing(PythonBackend):
    """Does nothing, batch by batch: what is left is the way to Python and back."""

    def __init__(self, size: int) -> None:
        self.size = size

    def submit(self, batch: IoBatch) -> None:
        """All succeed."""
        batch.complete()
