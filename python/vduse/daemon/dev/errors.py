"""What the kernel's refusals mean for the person, and what to do about each."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from vduse.daemon.errors import UserError
from vduse.vdpa.users import programs

#: What was being done: reaching the module, creating or opening the device, and `vduse dev`'s.
Step = Literal["reach", "serve", "show", "add", "del", "bind"]


class KernelRefused(UserError):
    """The kernel cannot, or does not let this user."""


_ROOT = "run it as root"
_ADVICE: dict[tuple[Step, int], str] = {
    ("serve", errno.EPERM): "the kernel has given the device up for good, because its program did "
    "not answer in time; remove it and start again: vduse dev del {name}",
    ("serve", errno.EINVAL): "the kernel refuses a device like this; vduse doctor says which "
    "kernels do",
    ("serve", errno.ENODEV): "the device went while it was opened: start again",
    ("show", errno.ENODEV): "not on the vDPA bus; vduse dev list shows what is",
    ("show", errno.EAGAIN): "its driver is just about to choose its features: try again",
    ("add", errno.EPERM): f"putting it on the vDPA bus takes CAP_NET_ADMIN: {_ROOT}",
    ("add", errno.EINVAL): "VDUSE has no such device, or one with a virtqueue that is not set up; "
    "a program serves it first: vduse blk IMAGE --name {name}",
    ("add", errno.EEXIST): "it is on the vDPA bus already: vduse dev show {name}",
    ("add", errno.ENODEV): "no such management device; vduse dev list shows those there are",
    ("add", errno.EOPNOTSUPP): "its management device sets no such attribute (VDUSE's sets none): "
    "leave out --features, --mac, --mtu and --max-vq-pairs",
    ("del", errno.EPERM): f"taking it off the vDPA bus takes CAP_NET_ADMIN: {_ROOT}",
    ("del", errno.ENODEV): "not on the vDPA bus; vduse dev list shows what is",
    ("del", errno.EINVAL): "its driver made it, and takes it away: it cannot be deleted",
    ("bind", errno.EACCES): f"changing a driver takes root: {_ROOT}",
    ("bind", errno.EROFS): "sysfs is read-only here: use the host's, outside the container",
    ("bind", errno.ENODEV): "the driver did not take it; the kernel's log says why: dmesg",
    ("bind", errno.EIO): "the driver did not take it; the kernel's log says why: dmesg",
}


def explain(error: OSError, step: Step, name: str) -> UserError:
    """One line with what to do: KernelRefused, but for a name that is in use."""
    if step == "serve" and error.errno == errno.EBUSY:
        return UserError(f"{name}: {_busy(name)}")
    text = error.strerror or str(error)
    advice = _ADVICE.get((step, error.errno or 0))
    # A text of our own says more than the errno's; it may name a path or a module.
    if advice is None or "modprobe" in text:
        is_whole = step == "reach" or text.startswith("/")
        return KernelRefused(text if is_whole else f"{name}: {text}")
    return KernelRefused(f"{name}: {advice.format(name=name)}")


@contextmanager
def explained(step: Step, name: str) -> Iterator[None]:
    """OSError inside becomes a UserError: see :func:`explain`."""
    try:
        yield
    except OSError as error:
        raise explain(error, step, name) from error


def _busy(name: str) -> str:
    holders = programs(f"/dev/vduse/{name}")
    whom = str(holders[0]) if holders else "another program"
    return f"{whom} serves a device of this name: stop it, or take another --name"
