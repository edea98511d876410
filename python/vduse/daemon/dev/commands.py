"""The rows of `vduse dev` in the command table. Handlers import what they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vduse.daemon.table import Command, Context, Group, argument, flag, option, optional, required
from vduse.daemon.values import DRIVERS, mac_address, number, one_of, whole

if TYPE_CHECKING:
    from vduse.daemon.dev.face import Changed, Listing
    from vduse.daemon.dev.run import Shown

_NAME = "name of the device"
_DRIVER = "virtio_vdpa for a /dev/vdX, vhost_vdpa for a /dev/vhost-vdpa-N"


def _qmp() -> Any:
    return optional(
        "of the bus in another vduse process (vduse blk ... --qmp SOCKET), not the kernel's",
        metavar="SOCKET",
    )


def _force() -> Any:
    return flag("even where the disk is mounted or open: its users lose it")


@dataclass(frozen=True)
class ListOptions:
    """Options of ``vduse dev list``."""

    qmp: str | None = _qmp()


@dataclass(frozen=True)
class ShowOptions:
    """Options of ``vduse dev show``."""

    name: str | None = argument("name of the device; left out: every one", metavar="NAME")
    qmp: str | None = _qmp()


@dataclass(frozen=True)
class AddOptions:
    """Options of ``vduse dev add``."""

    name: str = required("name of a device that a program serves", metavar="NAME")
    driver: str | None = optional(
        f"bind this bus driver: {_DRIVER}; left out: the one that the bus gives it",
        metavar="DRIVER",
        parse=one_of(*DRIVERS),
    )
    management: str = option("vduse", "management device, as of vduse dev list", metavar="NAME")
    features: int | None = optional(
        "feature bits to offer, of those that it has", metavar="BITS", parse=number
    )
    mac: str | None = optional("of a network device", metavar="ADDRESS", parse=mac_address)
    mtu: int | None = optional("of a network device", metavar="BYTES", parse=whole(68, 65535))
    max_vq_pairs: int | None = optional(
        "virtqueue pairs of a network device", metavar="N", parse=whole(1, 32768)
    )
    qmp: str | None = _qmp()


@dataclass(frozen=True)
class DelOptions:
    """Options of ``vduse dev del``."""

    name: str = required(_NAME, metavar="NAME")
    force: bool = _force()
    qmp: str | None = _qmp()


@dataclass(frozen=True)
class BindOptions:
    """Options of ``vduse dev bind``."""

    name: str = required(_NAME, metavar="NAME")
    driver: str = required(_DRIVER, metavar="DRIVER", parse=one_of(*DRIVERS))
    force: bool = _force()
    qmp: str | None = _qmp()


@dataclass(frozen=True)
class UnbindOptions:
    """Options of ``vduse dev unbind``."""

    name: str = required(_NAME, metavar="NAME")
    force: bool = _force()
    qmp: str | None = _qmp()


#: Of any of the commands.
DevOptions = ListOptions | ShowOptions | AddOptions | DelOptions | BindOptions | UnbindOptions


def _run(options: DevOptions, _context: Context) -> Listing | Shown | Changed:
    from vduse.daemon.dev.run import run

    return run(options)


def _show(facts: Listing | Shown | Changed, context: Context) -> None:
    from vduse.daemon.dev.show import show

    show(facts, context)


DEV = Group(
    name="dev",
    help="Devices on the kernel's vDPA bus, or another process's: list, show, add, del, bind",
    description=(
        "Devices on a vDPA bus: the kernel's, or with --qmp SOCKET the one in another vduse\n"
        "process (vduse blk ... --nbd SOCKET --qmp SOCKET). Looking is for everybody; changing\n"
        "the kernel's is for root. A device on the bus is bound to a driver: virtio_vdpa makes a\n"
        "/dev/vdX of it, vhost_vdpa a /dev/vhost-vdpa-N."
    ),
    commands=(
        Command(
            name="dev list",
            help="What is on the bus, and what devices are added to",
            description="One line a device, as vdpa dev show; then the management devices.",
            examples=(
                ("vduse dev list", "the kernel's bus"),
                ("vduse dev list --qmp disk.qmp --json", "another process's, for a program"),
            ),
            options=ListOptions,
            run=_run,
            show=_show,
        ),
        Command(
            name="dev show",
            help="All about a device: driver, node, features, config space, statistics",
            description=(
                "What vdpa dev show, dev config show and dev vstats show tell. The kernel has no\n"
                "statistics of VDUSE devices: on SIGUSR1 a device's program prints its own."
            ),
            examples=(
                ("vduse dev show disk0", "one device"),
                ("vduse dev show --json", "every one, for a program"),
            ),
            options=ShowOptions,
            run=_run,
            show=_show,
        ),
        Command(
            name="dev add",
            help="Put a device that a program serves on the bus",
            description=(
                "As vdpa dev add. Takes CAP_NET_ADMIN. vduse blk does it itself; other programs\n"
                "leave it to root. Attributes are for management devices that take some: VDUSE's\n"
                "takes none."
            ),
            examples=(
                ("vduse dev add disk0", "to the driver that was loaded first"),
                ("vduse dev add disk0 --driver vhost_vdpa", "to this one"),
            ),
            options=AddOptions,
            run=_run,
            show=_show,
        ),
        Command(
            name="dev del",
            help="Take a device off the bus",
            description=(
                "As vdpa dev del. Takes CAP_NET_ADMIN. Refused while somebody uses the disk. A\n"
                "device of VDUSE that no program serves is destroyed, too: nothing is left then\n"
                "of what a killed program had."
            ),
            examples=(
                ("vduse dev del disk0", "off the bus"),
                ("vduse dev del disk0 --force", "even while it is mounted"),
            ),
            options=DelOptions,
            run=_run,
            show=_show,
        ),
        Command(
            name="dev bind",
            help="Give a device to a bus driver",
            description="Takes it from the driver that has it. Takes root. The program goes on.",
            examples=(
                ("vduse dev bind disk0 vhost_vdpa", "for a virtual machine"),
                ("vduse dev bind disk0 virtio_vdpa", "as a /dev/vdX again"),
            ),
            options=BindOptions,
            run=_run,
            show=_show,
        ),
        Command(
            name="dev unbind",
            help="Take a device from its bus driver",
            description="It stays on the bus, without a node. Takes root.",
            examples=(("vduse dev unbind disk0", "no /dev/vdX any more"),),
            options=UnbindOptions,
            run=_run,
            show=_show,
        ),
    ),
)
