"""``python -m tests.system.villains NAME``: one of them. It prints what it has met with, line by
line, and "done" at its end."""

from __future__ import annotations

import sys

from tests.system.villains import crowds, fds, ioctls, messages, others
from tests.system.villains.base import VILLAINS

#: Importing them registers their programs.
MODULES = (crowds, fds, ioctls, messages, others)

if __name__ == "__main__":
    VILLAINS[sys.argv[1]]()
    print("done", flush=True)
