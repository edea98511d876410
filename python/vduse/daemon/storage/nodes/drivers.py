"""The drivers there are: a row more, and the command line, QMP, --check and the documentation have
it."""

from __future__ import annotations

from vduse.daemon.storage.nodes.file import FileOptions, HostDeviceOptions
from vduse.daemon.storage.nodes.nbd import NbdOptions
from vduse.daemon.storage.nodes.null import NullOptions
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.nodes.qcow2 import Qcow2Options
from vduse.daemon.storage.nodes.raw import RawOptions
from vduse.daemon.storage.nodes.rbd import RbdOptions
from vduse.daemon.storage.nodes.throttle import ThrottleOptions

DRIVERS: tuple[type[Blockdev], ...] = (
    FileOptions,
    HostDeviceOptions,
    NbdOptions,
    NullOptions,
    Qcow2Options,
    RawOptions,
    RbdOptions,
    ThrottleOptions,
)
