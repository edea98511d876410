"""The kernel's channel: the ports of base.py on /dev/vduse, by the ioctls, reads and writes of
linux/vduse.h. Errors are OSError with the kernel's errno; every ioctl of a device that the kernel
has given up is EPERM.

Irqs go by VDUSE_VQ_INJECT_IRQ. The kernel keeps no memory for a device's program: in-flight
records lie in a file (kernel_records.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading
import time
from collections.abc import Iterator

from vduse import _native
from vduse.channel.base import EXT_INFLIGHT, Resolver
from vduse.channel.kernel_records import KernelRecords, remove_records
from vduse.control.abi import (
    EVENTFD_DEASSIGN,
    DevConfig,
    DevRequest,
    DevResponse,
    DevSetConfig,
    DirtyLog,
    Ioctl,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    IovaUmem,
    VqConfig,
    VqEventfd,
    VqInfo,
    pack_name,
    pack_u32,
    pack_u64,
    unpack_u64,
)

#: Where the kernel's device nodes are.
DIRECTORY = "/dev/vduse"
#: Seconds for udev to hand over the node of a device that was just created.
_HANDOVER = 5.0


def _ioctl(fd: int, nr: Ioctl, payload: bytes = b"") -> tuple[int, bytes]:
    """One ioctl: its return value, and its struct as the kernel wrote it back."""
    size = nr >> 16 & 0x3FFF
    # A bytearray: other buffers may be no longer than 1024 bytes.
    argument = bytearray(payload.ljust(size, b"\0"))
    result = fcntl.ioctl(fd, nr, argument, True) if argument else fcntl.ioctl(fd, nr)
    return result, bytes(argument)


class KernelControl:
    """A :class:`~vduse.channel.base.ControlPort` on /dev/vduse. The control node is opened when
    it is first needed: who may open a device's node only can still take that device over.

    Every method but :meth:`open` and :meth:`close` raises FileNotFoundError where there is no
    module and PermissionError where the control node may not be opened; both say what to do.
    """

    def __init__(self, directory: str = DIRECTORY, *, records: str | None = None) -> None:
        """``records``: where in-flight records are kept, in the place of
        :func:`~vduse.channel.kernel_records.runtime_directory`."""
        self._directory = directory
        self._records = records
        self._fd = -1
        #: What devices that are created or opened from now on speak.
        self._api_version = 0
        #: The device created last: its node may still be root's.
        self._created = ""

    def get_api_version(self) -> int:
        """The API version of this fd. Linux 7 chooses its newest one here, where none was set."""
        _, answer = _ioctl(self._node(), Ioctl.GET_API_VERSION)
        self._api_version = unpack_u64(answer)
        return self._api_version

    def set_api_version(self, version: int) -> None:
        """Chooses the API version of this fd, and of devices that are opened from now on, even
        where there is no control node to tell. OSError EINVAL: the kernel does not know it."""
        self._api_version = version
        _ioctl(self._node(), Ioctl.SET_API_VERSION, pack_u64(version))

    def create_dev(self, config: DevConfig) -> None:
        """OSError EINVAL, EPERM (a network device without CAP_NET_ADMIN), EEXIST, ENOMEM."""
        _ioctl(self._node(), Ioctl.CREATE_DEV, config.pack())
        self._created = config.name

    def destroy_dev(self, name: str) -> None:
        """Its in-flight record goes too. OSError EINVAL: no such device; EBUSY: open, or on the
        vDPA bus."""
        _ioctl(self._node(), Ioctl.DESTROY_DEV, pack_name(name))
        remove_records(name, self._records)

    def open(self, name: str) -> KernelChannel:
        """OSError ENOENT, ENODEV, EACCES, EBUSY (somebody has it open). The node of a device that
        was created here may be root's until udev hands it over: waited for, 5 seconds at most."""
        path = os.path.join(self._directory, name)
        patience = _HANDOVER if name == self._created else 0.0
        with _advised(path):
            fd = _open_handed_over(path, patience)
        return KernelChannel(name, fd, self._api_version, records=self._records)

    def close(self) -> None:
        """Devices opened through it stay open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _node(self) -> int:
        if self._fd < 0:
            path = os.path.join(self._directory, "control")
            with _advised(path):
                self._fd = os.open(path, os.O_RDWR)
        return self._fd


class KernelChannel:
    """A :class:`~vduse.channel.base.Channel` on /dev/vduse/NAME; takes over ``fd``, which is
    O_NONBLOCK. ``api_version``: that of the device; ``records``: as of :class:`KernelControl`."""

    def __init__(self, name: str, fd: int, api_version: int, *, records: str | None = None) -> None:
        self._name = name
        self._api_version = api_version
        self._node = _native.KernelNode(fd, api_version)
        self._records = KernelRecords(name, fd, records)
        #: Nobody uses the fd's number while it is closed, and may become another file's.
        self._lock = threading.Lock()

    @property
    def extensions(self) -> frozenset[str]:
        """In-flight records; no call fds."""
        return frozenset({EXT_INFLIGHT})

    def fileno(self) -> int:
        """The node."""
        return self._node.fileno()

    def receive(self) -> DevRequest | None:
        """The next message; None: none there now. ConnectionAbortedError: the kernel has given
        the device up, because a message was not answered in time. ConnectionResetError: it was
        `vduse run`, and has ended."""
        with self._lock:
            fd = self.fileno()
            try:
                data = os.read(fd, DevRequest.SIZE)
            except BlockingIOError:
                if _is_broken(fd):
                    raise self._broken() from None
                return None
        if not data:
            raise self._hung_up()
        return DevRequest.unpack(data)

    def respond(self, response: DevResponse) -> None:
        """An answer that nobody waits for any more (a killed program's, one too late) is
        dropped."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.write(self.fileno(), response.pack())

    def dev_get_features(self) -> int:
        """What the driver wrote."""
        return unpack_u64(self._call(Ioctl.DEV_GET_FEATURES))

    def dev_set_config(self, offset: int, data: bytes) -> None:
        """OSError EINVAL: no data, or outside the config space."""
        self._call(Ioctl.DEV_SET_CONFIG, DevSetConfig(offset, data).pack())

    def dev_inject_config_irq(self) -> None:
        """OSError EINVAL: before DRIVER_OK."""
        self._call(Ioctl.DEV_INJECT_CONFIG_IRQ)

    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None:
        """OSError EINVAL."""
        self._call(Ioctl.VQ_SETUP, VqConfig(index, max_size, group).pack())

    def vq_get_info(self, index: int) -> VqInfo:
        """OSError EINVAL: no such virtqueue."""
        return VqInfo.unpack(self._call(Ioctl.VQ_GET_INFO, VqInfo(index).pack()))

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        """The kernel holds the eventfd, not the fd; -1 deassigns. OSError EINVAL, EBADF."""
        fd = fd if fd >= 0 else EVENTFD_DEASSIGN
        self._call(Ioctl.VQ_SETUP_KICKFD, VqEventfd(index, fd).pack())

    def vq_inject_irq(self, index: int) -> None:
        """OSError EINVAL: before DRIVER_OK."""
        self._call(Ioctl.VQ_INJECT_IRQ, pack_u32(index))

    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        """The first overlapping mapping and its fd (the caller owns it; close-on-exec). OSError
        EINVAL: none."""
        asked = IotlbEntry(start=start, last=last)
        with self._lock:
            if self._api_version == 0:
                fd, answer = _ioctl(self.fileno(), Ioctl.IOTLB_GET_FD, asked.pack())
            else:
                asked_v2 = IotlbEntryV2(asked).pack()
                fd, answer = _ioctl(self.fileno(), Ioctl.IOTLB_GET_FD2, asked_v2)
        # The kernel leaves it open across exec.
        os.set_inheritable(fd, False)
        return IotlbEntry.unpack(answer[: IotlbEntry.SIZE]), fd

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo:
        """OSError EINVAL: nothing there."""
        return IovaInfo.unpack(self._call(Ioctl.IOTLB_GET_INFO, IovaInfo(start, last).pack()))

    def iotlb_reg_umem(self, umem: IovaUmem) -> None:
        """OSError EINVAL, EEXIST, ENOMEM (RLIMIT_MEMLOCK)."""
        self._call(Ioctl.IOTLB_REG_UMEM, umem.pack())

    def iotlb_dereg_umem(self, umem: IovaUmem) -> None:
        """OSError ENOENT, EINVAL."""
        self._call(Ioctl.IOTLB_DEREG_UMEM, umem.pack())

    def resolver(self) -> Resolver:
        """The node, shared."""
        return self._node

    def vq_get_callfd(self, index: int) -> int:
        """OSError ENOTTY: the kernel has no call fds."""
        raise OSError(errno.ENOTTY, f"virtqueue {index}: the kernel has no call fds")

    def vq_get_kickfd(self, index: int) -> int | None:
        """None: the kernel relays kicks."""
        return None

    def log_get_fd(self) -> tuple[DirtyLog, int] | None:
        """None: the kernel has no word for migration."""
        return None

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int | None:
        """See :meth:`vduse.channel.base.Channel.get_inflight_fd`."""
        if fresh:
            return self._records.begin(size, features)
        return self._records.resume(size, features)

    def clear_inflight(self) -> None:
        """OSError: they are as they were."""
        self._records.clear()

    def close(self) -> None:
        """The node closes: unanswered messages go to its next opener."""
        self._records.close()
        with self._lock:
            self._node.close()

    def _call(self, nr: Ioctl, payload: bytes = b"") -> bytes:
        with self._lock:
            return _ioctl(self.fileno(), nr, payload)[1]

    def _hung_up(self) -> ConnectionError:
        """Why a node that is a socket, as under `vduse run`, is at its end."""
        try:
            self.dev_get_features()
        except PermissionError:
            why = f"{self._name} was given up: a message was not answered in time; start it again"
            return ConnectionAbortedError(errno.ECONNABORTED, why)
        except OSError as error:
            return ConnectionResetError(errno.ECONNRESET, f"{self._name}: {error.strerror}")
        return ConnectionResetError(errno.ECONNRESET, f"{self._name} was closed by `vduse run`")

    def _broken(self) -> ConnectionAbortedError:
        name = self._name
        return ConnectionAbortedError(
            errno.ECONNABORTED,
            f"the kernel has given {name} up: a message was not answered within the seconds of "
            f"/sys/class/vduse/{name}/msg_timeout; take it off the vDPA bus, destroy it, and "
            "start it again",
        )


def _open_handed_over(path: str, patience: float) -> int:
    """The node's fd. PermissionError: not ours after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NONBLOCK)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            # udev takes milliseconds. It tells its own network namespace only: no container.
            time.sleep(0.01)


def _is_broken(fd: int) -> bool:
    """Whether the kernel has given the device up; reading does not say so."""
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


@contextlib.contextmanager
def _advised(path: str) -> Iterator[None]:
    """Errors of opening ``path`` say what helps."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise OSError(error.errno, _advice(error, path)) from error


def _advice(error: OSError, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        if os.path.basename(path) == "control":
            return f"{path}: {error.strerror}: load the module (as root): modprobe vduse"
        return f"{path}: {error.strerror}"
    return (
        f"{path}: {error.strerror}: run as root, or have a udev rule hand it over: "
        'SUBSYSTEM=="vduse", GROUP="vduse", MODE="0660"'
    )
