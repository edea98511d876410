"""A virtqueue becomes ready only after DRIVER_OK.

Enabling sends no message, and a vhost-vdpa client may do it at any time: a device that looks at
its virtqueues at DRIVER_OK and never again leaves this one dead. What does it is
:class:`vduse.run.faults.vdpa.Late`."""

from __future__ import annotations

from vduse.run.faults.kind import Kind, Option, index, seconds

#: Values of ``queue``: the last virtqueue.
LAST = -1

KIND = Kind(
    name="late-enable",
    summary="a virtqueue becomes ready only some time after DRIVER_OK",
    clients="requests on it wait; for ever, where the daemon looks at DRIVER_OK only",
    make=None,
    options={
        "by": Option(seconds, 1.0, "TIME after DRIVER_OK (1s)"),
        "queue": Option(index, LAST, "which virtqueue (the last one that the driver enables)"),
    },
)
