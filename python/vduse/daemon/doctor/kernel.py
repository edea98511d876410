"""The kernel's way, step by step: what is missing until a device becomes a /dev/vdX here."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from vduse.channel.kernel_records import is_ours, runtime_directory
from vduse.daemon.doctor.check import Check, limited, missing, ok
from vduse.daemon.doctor.host import Host

#: What is needed: each module, its kernel's option for it, and what is in /sys where it is there.
MODULES = {
    "vduse": ("VDPA_USER", "class/vduse"),
    "virtio_vdpa": ("VIRTIO_VDPA", "bus/vdpa/drivers/virtio_vdpa"),
    "vhost_vdpa": ("VHOST_VDPA", "bus/vdpa/drivers/vhost_vdpa"),
    "virtio_blk": ("VIRTIO_BLK", "bus/virtio/drivers/virtio_blk"),
}
#: The group of the udev rule that the project ships.
_GROUP = "vduse"
_INSTALL = "as root, in a checkout: packaging/install"


def modules(host: Host) -> Check:
    """Those that make a /dev/vdX or a /dev/vhost-vdpa-N of a device."""
    name = "kernel modules"
    absent = [m for m, (_, place) in MODULES.items() if not (host.root / "sys" / place).is_dir()]
    if not absent:
        return ok(name, f"{', '.join(MODULES)}: loaded")
    unknown = [module for module in absent if not host.is_installed(module)]
    if unknown:
        options = ", ".join(f"CONFIG_{MODULES[module][0]}" for module in unknown)
        return missing(
            name,
            f"not installed for {host.release}: {', '.join(unknown)}",
            f"a kernel with {options}: Debian's linux-image-amd64, from 6.12 on",
        )
    return limited(
        name, f"not loaded: {', '.join(absent)}", f"as root: modprobe -a {' '.join(absent)}"
    )


def control_node(host: Host) -> Check:
    """Creating devices: the right to open the control node."""
    name, path = "control node", host.nodes / "control"
    try:
        return ok(name, f"{path}: API version {host.api_version()}")
    except FileNotFoundError:
        if (host.root / "sys/class/vduse").is_dir():
            how = "hand it into the container, with the nodes of devices (/dev/vduse)"
            return missing(name, f"no {path}, although the module is loaded", how)
        return missing(name, f"no {path}", "load the modules first")
    except PermissionError:
        return limited(name, f"{path}: {_access(path)}, not for {_user()}", _right_to(path))
    except OSError as error:
        return missing(name, f"{path}: {error.strerror}", "what answers there is not VDUSE")


def bus_management(host: Host) -> Check:
    """Putting devices on the bus, and taking them off."""
    if host.may_manage_the_bus():
        return ok("vDPA bus", "this user may put devices on it (CAP_NET_ADMIN)")
    return limited(
        "vDPA bus",
        "only root puts devices on it (CAP_NET_ADMIN)",
        "as root, for a device that is served: vduse dev add NAME; or the service vduse@NAME",
    )


def record_folder(host: Host) -> Check:
    """Where records of requests in flight are kept: with them a new program goes on under a live
    driver after a crash."""
    name = "record folder"
    try:
        folder = host.root / runtime_directory().lstrip("/")
    except OSError as error:
        how = "RuntimeDirectory= of the service, or a login session (XDG_RUNTIME_DIR)"
        return limited(name, f"{error.strerror}: a crash loses requests in flight", how)
    if folder.exists() and not is_ours(folder.lstat()):
        detail = f"{folder}: {_access(folder)}: others may write to it, so it is not used"
        how = f"as root: rm -r {folder}"
        return limited(name, f"{detail}: a crash loses requests in flight", how)
    nearest = folder if folder.exists() else folder.parent
    if os.access(nearest, os.W_OK | os.X_OK):
        return ok(name, f"{folder}: records of requests in flight")
    detail = f"{nearest}: {_access(nearest)}" if nearest.exists() else f"no {nearest}"
    how = "hand it over (chown), or RuntimeDirectory= of the service, else XDG_RUNTIME_DIR"
    return limited(name, f"{detail}, not for {_user()}: a crash loses requests in flight", how)


def _access(path: Path) -> str:
    found = path.stat()
    owner = f"{_name_of_user(found.st_uid)}:{_name_of_group(found.st_gid)}"
    return f"{owner} {stat.S_IMODE(found.st_mode):04o}"


def _right_to(path: Path) -> str:
    """The step that is missing for this user to open a node."""
    found = path.stat()
    readable = stat.S_IMODE(found.st_mode) & 0o060 == 0o060
    if not readable or found.st_gid == 0:
        return f"{_INSTALL} (group {_GROUP} and a udev rule); then as root: {_join(_GROUP)}"
    group = _name_of_group(found.st_gid)
    if found.st_gid in os.getgrouplist(_user(), os.getgid()):
        return f"{_user()} is of group {group} since this session began: log in again"
    return f"as root: {_join(group)}; then log in again"


def _join(group: str) -> str:
    return f"usermod -aG {group} {_user()}"


def _user() -> str:
    return _name_of_user(os.geteuid())


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
