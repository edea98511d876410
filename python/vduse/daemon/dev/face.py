"""What `vduse dev` asks of a vDPA bus, whichever it is, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Management:
    """What devices are added to (`vdpa mgmtdev show`)."""

    name: str
    #: Virtio device types: "block", "net"; a number where it has no name here.
    types: tuple[str, ...]
    #: Most virtqueues of a device; 0: it does not say.
    max_vqs: int


@dataclass(frozen=True)
class Device:
    """A device, on the bus or created for it (`vdpa dev show`)."""

    name: str
    on_bus: bool
    #: As :attr:`Management.types`; None: not known before it is on the bus.
    type: str | None = None
    #: Its management device.
    management: str | None = None
    #: The bus driver that has it.
    driver: str | None = None
    #: What that made of it: /dev/vdX, /dev/vhost-vdpa-N.
    node: str | None = None
    #: Most virtqueues, and descriptors of one; 0: not known.
    max_vqs: int = 0
    max_vq_size: int = 0


@dataclass(frozen=True)
class Details:
    """All that the bus tells of a device (`vdpa dev show`, `config show`, `vstats show`)."""

    device: Device
    #: Who serves it; None: nobody, or nobody that this user may see.
    program: str | None
    #: Feature bits that the driver chose, by name; None before FEATURES_OK.
    features: tuple[str, ...] | None
    #: Feature bits that it offers, by name.
    offered: tuple[str, ...]
    #: Of the config space: ``blk_cfg_capacity`` (sectors of 512)...
    config: Mapping[str, int | str]
    #: Of each virtqueue, by name; empty: see ``no_statistics``.
    statistics: tuple[Mapping[str, int], ...] = ()
    #: Why there are none, and where there are; empty: there are some.
    no_statistics: str = ""


@dataclass(frozen=True)
class Listing:
    """Everything there is."""

    devices: tuple[Device, ...]
    management: tuple[Management, ...]


@dataclass(frozen=True)
class Attributes:
    """What a new device on the bus may be given, where its management device takes it. None:
    nothing."""

    #: Feature bits to offer, of those that the device has.
    features: int | None = None
    #: Of a network device: six bytes, as 52:54:00:12:34:56.
    mac: str | None = None
    #: Bytes.
    mtu: int | None = None
    max_vq_pairs: int | None = None


@dataclass(frozen=True)
class Changed:
    """What was done."""

    #: added, deleted, bound or unbound.
    event: str
    #: As it is now.
    device: Device
    #: What else there is to know, for people to read: a program that did not answer.
    notes: tuple[str, ...] = field(default=())


class VdpaFace(Protocol):
    """A vDPA bus. Every method may wait for a device's program. UserError says what to do.

    ``force``: even where somebody uses the disk."""

    def list(self) -> Listing:
        """All devices, and what they are added to."""

    def show(self, name: str) -> Details:
        """One device."""

    def add(
        self, name: str, management: str, attributes: Attributes, driver: str | None
    ) -> Changed:
        """Puts a device on the bus. ``driver``: to be bound; None: whichever takes it."""

    def delete(self, name: str, *, force: bool) -> Changed:
        """Takes it off the bus; a device that no program serves is destroyed."""

    def bind(self, name: str, driver: str, *, force: bool) -> Changed:
        """Gives it to another driver."""

    def unbind(self, name: str, *, force: bool) -> Changed:
        """Takes it from its driver."""

    def close(self) -> None:
        """Lets go of the bus."""
