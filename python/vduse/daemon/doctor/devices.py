"""The devices that are on the kernel's VDUSE already, and what each waits for.

Only looked at from outside: opening a node would take it from its program. So a device that the
kernel has given up is seen where its program has gone; a program that lives knows it itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from vduse.daemon.doctor.check import Check, limited, ok
from vduse.daemon.doctor.host import Host
from vduse.vdpa.users import programs


def device_checks(host: Host) -> Iterator[Check]:
    """One check a device."""
    return (_device(host, name) for name in host.devices())


def _device(host: Host, name: str) -> Check:
    check = f"device {name}"
    serving = programs(host.nodes / name, host.root / "proc")
    # Root sees all processes, an ordinary user its own.
    if not serving and os.geteuid() == 0:
        return _without_program(host, check, name)
    who = ", ".join(map(str, serving)) or "a program that is not to be seen from here"
    if any(program.stopped for program in serving):
        pid = serving[0].pid
        how = f"kill -CONT {pid}; after /sys/class/vduse/{name}/msg_timeout it is lost"
        return limited(check, f"{who} is stopped and answers nothing", how)
    if name not in host.bus.names():
        how = f"as root: vduse dev add {name}"
        return limited(check, f"served by {who}, not on the vDPA bus", how)
    driver, node = host.bus.driver(name), host.bus.node(name)
    if driver is None:
        how = f"as root: vduse dev bind {name} virtio_vdpa"
        return limited(check, f"served by {who}, on the vDPA bus without a driver", how)
    if node is None:
        how = f"as root: modprobe virtio_blk; the kernel's log may say more: dmesg | grep {name}"
        return limited(check, f"served by {who}; {driver} has it and made no node", how)
    return ok(check, f"served by {who}; {driver}: {node}")


def _without_program(host: Host, check: str, name: str) -> Check:
    if name not in host.bus.names():
        how = (
            f"vduse dev del {name}; or start its program again: it takes it over, or makes it anew"
        )
        return limited(check, "no program, not on the vDPA bus: left behind", how)
    how = (
        f"start its program again: it takes over; where that is refused (EPERM: the kernel has "
        f"given the device up): vduse dev del {name}"
    )
    return limited(check, "on the vDPA bus without a program: its requests wait", how)
