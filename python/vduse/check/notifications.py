"""What either side of a virtqueue wants to be told (virtio 1.3, 2.7.7, 2.7.10 and 2.8.10)."""

from __future__ import annotations

from threading import Lock

from vduse.testing.rings import PackedRing, SplitRing

#: Event suppression of a packed ring: at one descriptor only.
_DESC = 2
_WRAP = 1 << 15


class Notifications:
    """Of one ring, from the driver's side."""

    def __init__(self, ring: SplitRing | PackedRing, event_idx: bool) -> None:
        """``event_idx``: VIRTIO_F_EVENT_IDX was negotiated."""
        self._ring = ring
        self._event_idx = event_idx
        self._barrier = Lock()

    def want_irq(self) -> None:
        """An interrupt for the next used element. What was used before is to be looked for
        after this."""
        ring = self._ring
        if isinstance(ring, PackedRing):
            ring.set_driver_event(0)
        else:
            ring.set_avail_flags(0)
            if self._event_idx:
                ring.set_used_event(ring.seen_used)
        self._fence()

    def want_no_irq(self) -> None:
        """No interrupt for now."""
        ring = self._ring
        if isinstance(ring, PackedRing):
            ring.set_driver_event(1)
            return
        ring.set_avail_flags(1)
        if self._event_idx:
            # As far away as can be: behind what comes next.
            ring.set_used_event((ring.seen_used + 0x8000) & 0xFFFF)

    def wants_kick(self, old: int) -> bool:
        """Whether the device wants a kick for what was made available since the ring stood at
        ``old`` (:attr:`~vduse.check.queue.Queue.base`)."""
        self._fence()
        ring = self._ring
        if isinstance(ring, SplitRing):
            if self._event_idx:
                return _passed(ring.avail_event, ring.avail_index, old)
            return not ring.used_flags & 1
        flags, event = ring.device_event
        if flags != _DESC:
            return not flags & 1
        return _passed(self._ahead(ring, event), ring.next_avail, self._ahead(ring, old))

    def _ahead(self, ring: PackedRing, position: int) -> int:
        """A position with wrap counter, counted from the start of the driver's lap."""
        index = position & (_WRAP - 1)
        if bool(position & _WRAP) != ring.avail_wrap:
            index -= ring.size
        return index & 0xFFFF

    def _fence(self) -> None:
        """What was written to the ring is visible before anything is read: taking a lock is an
        atomic exchange, and a full barrier."""
        with self._barrier:
            return


def _passed(event: int, new: int, old: int) -> bool:
    """vring_need_event (2.7.10): the step from ``old`` to ``new`` passes ``event``."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
