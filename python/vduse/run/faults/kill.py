"""SIGKILL to the program, and another start."""

from __future__ import annotations

import errno
import threading
from time import monotonic

from vduse.run.faults.kind import Kind, Values
from vduse.run.faults.target import Target

#: Seconds that the next program may take to have the device's node open.
_BACK = 60.0
#: Seconds of one wait, so that the end of the run is noticed.
_SLICE = 1.0
#: Seconds between two looks for another program.
_LOOK = 0.005


class Kill:
    """The program is killed with requests in flight; the next one goes on with them."""

    def __init__(self, _values: Values) -> None:
        """No state."""

    def strike(self, target: Target, stop: threading.Event) -> str:
        run = target.run
        pid = run.pid
        run.kill()
        deadline = monotonic() + _BACK
        # Until the next one is started its name may still stand for the one that was killed.
        while run.pid == pid or not run.wait_open(target.name, _SLICE):
            if stop.wait(_LOOK):
                return f"process {pid} killed, at the end"
            if monotonic() > deadline:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"process {pid} was killed, and none opened {target.name} in {_BACK:g} s",
                )
        return f"process {pid} killed; {run.pid} has the device"


KIND = Kind(
    name="kill",
    summary="SIGKILL to the program, which is started again",
    clients="a pause; no error, where the daemon recovers what was in flight",
    make=Kill,
    of_program=True,
)
