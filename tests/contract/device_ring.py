"""A split virtqueue (virtio 1.3, 2.7) as a raw device sees it: read and written through the
regions that its program maps. Layout only; nothing is checked."""

from __future__ import annotations

import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from tests.contract.ports import Node

_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_NEXT = 1


@dataclass(frozen=True)
class Buffer:
    """One descriptor."""

    addr: int
    length: int
    #: The device may write it.
    writable: bool


class DeviceRing:
    """Virtqueue ``index`` of a node, as VQ_GET_INFO describes it."""

    def __init__(self, node: Node, index: int = 0) -> None:
        self._node = node
        self._info = node.channel.vq_get_info(index)
        self._taken = 0

    @property
    def waiting(self) -> int:
        """Chains that the driver offers and nobody has taken."""
        return (self._u16(self._info.driver_addr + 2) - self._taken) & 0xFFFF

    def take(self) -> tuple[int, list[Buffer]]:
        """The next chain: its head and its buffers."""
        assert self.waiting, "no chain is offered"
        head = self._offered(self._taken)
        self._taken += 1
        return head, self._chain(head)

    def _offered(self, position: int) -> int:
        """The head at a position of the avail ring."""
        return self._u16(self._info.driver_addr + 4 + 2 * (position % self._info.num))

    def _chain(self, head: int) -> list[Buffer]:
        chain, index = [], head
        while True:
            raw = self._node.read_region(self._info.desc_addr + 16 * index, 16)
            addr, length, flags, index = _DESC.unpack(raw)
            chain.append(Buffer(addr, length, bool(flags & 2)))
            if not flags & _NEXT:
                return chain

    def put(self, head: int, written: int) -> None:
        """Hands a chain back and injects an irq."""
        used = self._u16(self._info.device_addr + 2)
        at = self._info.device_addr + 4 + 8 * (used % self._info.num)
        self._node.write_region(at, _USED.pack(head, written))
        index = (used + 1) & 0xFFFF
        self._node.write_region(self._info.device_addr + 2, index.to_bytes(2, "little"))
        self._node.channel.vq_inject_irq(self._info.index)

    def finish(self, head: int, chain: list[Buffer], data: bytes = b"") -> None:
        """Completes a virtio-blk request with status OK; ``data`` is what was read."""
        at = 0
        for buffer in chain[1:-1]:
            if buffer.writable:
                self._node.write_region(buffer.addr, data[at : at + buffer.length])
                at += buffer.length
        self._node.write_region(chain[-1].addr, b"\0")
        self.put(head, at + 1)

    def finish_all(self) -> None:
        """Completes whatever the driver still waits for, taken or not."""
        offered = self._u16(self._info.driver_addr + 2)
        used = self._u16(self._info.device_addr + 2)
        size = self._info.num
        heads = Counter(self._offered(at) for at in range(max(0, offered - size), offered))
        for at in range(max(0, offered - size), used):
            entry = self._info.device_addr + 4 + 8 * (at % size)
            heads[self._u16(entry)] -= 1
        for head in heads.elements():
            chain = self._chain(head)
            self.finish(head, chain, bytes(sum(buffer.length for buffer in chain)))

    def _u16(self, addr: int) -> int:
        return int.from_bytes(self._node.read_region(addr, 2), "little")


def finish_all(node: Node) -> None:
    """Completes what virtqueue 0 of a virtio-blk device has outstanding, if it is in use: the
    kernel's driver waits for its requests before it lets a device go."""
    # The node is closed, its program gone, the device broken or without a driver.
    with suppress(OSError, ValueError):
        if node.channel.vq_get_info(0).ready:
            DeviceRing(node).finish_all()
