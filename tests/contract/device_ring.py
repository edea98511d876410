"""A split virtqueue (virtio 1.3, 2.7) as a raw device sees it: read and written through the
regions that its program maps. Layout only; nothing is checked."""

from __future__ import annotations

import struct
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
        slot = self._taken % self._info.num
        head = self._u16(self._info.driver_addr + 4 + 2 * slot)
        self._taken += 1
        chain, index = [], head
        while True:
            raw = self._node.read_region(self._info.desc_addr + 16 * index, 16)
            addr, length, flags, index = _DESC.unpack(raw)
            chain.append(Buffer(addr, length, bool(flags & 2)))
            if not flags & _NEXT:
                return head, chain

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

    def _u16(self, addr: int) -> int:
        return int.from_bytes(self._node.read_region(addr, 2), "little")
