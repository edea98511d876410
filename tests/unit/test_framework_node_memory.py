"""Memory at a device node: user memory (spec, "Device fd"), call fds and in-flight memory
(docs/channel.md)."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.unit.node_bench import BOUNCE, LIVE, Bench
from vduse.control.abi import (
    ExtCall,
    Ioctl,
    IovaInfo,
    IovaUmem,
    SetStatus,
    UpdateCallfd,
    pack_u32,
    pack_u64,
)
from vduse.framework import device_node


class TestUmem:
    """IOTLB_REG_UMEM, IOTLB_DEREG_UMEM: checks in order."""

    def umem(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {"uaddr": 0x10000, "iova": 0, "size": BOUNCE}
        return IovaUmem(**(fields | changes)).pack()

    def test_einval_before_attach_and_before_a_bounce_page_was_mapped(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.IOTLB_REG_UMEM, self.umem()) == errno.EINVAL
        bench.attach()
        assert bench.fails(Ioctl.IOTLB_REG_UMEM, self.umem()) == errno.EINVAL

    def test_dereg_without_reg_is_enoent(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.IOTLB_DEREG_UMEM, self.umem()) == errno.ENOENT
        assert bench.fails(Ioctl.IOTLB_DEREG_UMEM, self.umem(asid=1)) == errno.EINVAL
        bench.attach()
        assert bench.fails(Ioctl.IOTLB_DEREG_UMEM, self.umem()) == errno.ENOENT

    def test_reg_and_dereg(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.attach()
        assert bench.device.domain is not None
        fake = FakeDomain()
        monkeypatch.setattr(bench.device.domain, "native", fake)
        for bad in (
            self.umem(size=BOUNCE - 4096),
            self.umem(iova=4096),
            self.umem(uaddr=0x10001),
            self.umem(asid=1),
            self.umem(reserved=b"\1" + bytes(19)),
        ):
            assert bench.fails(Ioctl.IOTLB_REG_UMEM, bad) == errno.EINVAL
        monkeypatch.setattr(device_node, "lockable_bytes", lambda pid: BOUNCE - 1)
        assert bench.fails(Ioctl.IOTLB_REG_UMEM, self.umem()) == errno.ENOMEM
        monkeypatch.setattr(device_node, "lockable_bytes", lambda pid: BOUNCE)
        bench.ok(Ioctl.IOTLB_REG_UMEM, self.umem())
        assert fake.umem == (os.getpid(), 0x10000)
        assert bench.fails(Ioctl.IOTLB_REG_UMEM, self.umem()) == errno.EEXIST
        assert bench.fails(Ioctl.IOTLB_REG_UMEM, self.umem(size=1)) == errno.EINVAL
        assert bench.fails(Ioctl.IOTLB_DEREG_UMEM, self.umem(iova=4096)) == errno.EINVAL
        bench.ok(Ioctl.IOTLB_DEREG_UMEM, self.umem())
        assert fake.umem is None
        bench.ok(Ioctl.IOTLB_REG_UMEM, self.umem())
        bench.node.release()
        assert fake.umem is None

    def test_cap_umem_only_for_the_bounce_region(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench.attach()
        assert bench.device.domain is not None
        monkeypatch.setattr(bench.device.domain, "native", FakeDomain())
        answer = bench.ok(Ioctl.IOTLB_GET_INFO, IovaInfo(1, 1).pack())
        assert IovaInfo.unpack(answer) == IovaInfo(0, BOUNCE - 1, capability=1)
        answer = bench.ok(Ioctl.IOTLB_GET_INFO, IovaInfo(BOUNCE, 2**64 - 1).pack())
        assert IovaInfo.unpack(answer) == IovaInfo(BOUNCE + 4096, BOUNCE + 8191)


class FakeDomain:
    """A domain with a bounce page and one coherent region."""

    bounce_size = BOUNCE
    bounce_mapped = True
    fd = 0

    def __init__(self) -> None:
        self.umem: tuple[int, int] | None = None

    def entries(self) -> list[tuple[int, int, int, int]]:
        return [(0, BOUNCE - 1, 0, 3), (BOUNCE + 4096, BOUNCE + 8191, BOUNCE + 4096, 3)]

    def reg_umem(self, pid: int, uaddr: int) -> None:
        self.umem = (pid, uaddr)

    def dereg_umem(self) -> None:
        self.umem = None


class TestExtensions:
    """docs/channel.md: VQ_GET_CALLFD, GET_INFLIGHT_FD, UPDATE_CALLFD."""

    def test_callfd_is_what_an_irq_signals(self, bench: Bench) -> None:
        vdpa = bench.attach()
        _, fd = bench.fd(ExtCall.VQ_GET_CALLFD, pack_u32(0))
        os.eventfd_write(fd, 1)
        assert os.eventfd_read(vdpa.vq_line(0).callfd) == 1
        os.close(fd)

    def test_a_new_call_fd_is_told_to_a_device_that_holds_the_old_one(self, bench: Bench) -> None:
        vdpa = bench.attach()
        seen = bench.agreeing()
        call = os.eventfd(0, os.EFD_NONBLOCK)
        vdpa.set_vq_cb(1, call)
        assert seen == []
        bench.fd(ExtCall.VQ_GET_CALLFD, pack_u32(1))
        vdpa.set_vq_cb(1, None)
        assert [request.message for request in seen] == [UpdateCallfd(1)]
        vdpa.reset()
        vdpa.set_vq_cb(1, call)
        assert [request.message for request in seen] == [UpdateCallfd(1), SetStatus(0)]
        os.close(call)

    def test_inflight_memory_outlives_its_opener_and_is_zeroed_on_reset(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        _, fd = bench.fd(ExtCall.GET_INFLIGHT_FD, pack_u64(4096))
        os.pwrite(fd, b"in flight", 0)
        bench.node.release()
        bench.node = bench.open()
        _, again = bench.fd(ExtCall.GET_INFLIGHT_FD, pack_u64(4096))
        assert os.pread(again, 9, 0) == b"in flight"
        vdpa.reset()
        assert os.pread(fd, 4096, 0) == bytes(4096)
        os.pwrite(fd, b"in flight", 0)
        _, larger = bench.fd(ExtCall.GET_INFLIGHT_FD, pack_u64(8192))
        assert os.pread(larger, 8193, 0) == bytes(8192)
        with pytest.raises(OSError):
            os.ftruncate(larger, 0)
        for each in (fd, again, larger):
            os.close(each)

    def test_inflight_memory_of_a_live_driver_keeps_its_size(self, bench: Bench) -> None:
        _, fd = bench.fd(ExtCall.GET_INFLIGHT_FD, pack_u64(4096))
        os.pwrite(fd, b"record", 0)
        bench.device.status = LIVE
        assert bench.fails(ExtCall.GET_INFLIGHT_FD, pack_u64(8192)) == errno.EBUSY
        _, again = bench.fd(ExtCall.GET_INFLIGHT_FD, pack_u64(4096))
        assert os.pread(again, 6, 0) == b"record"
        os.close(fd)
        os.close(again)

    @pytest.mark.parametrize("size", [0, 1 << 40])
    def test_inflight_size_is_bounded(self, bench: Bench, size: int) -> None:
        assert bench.fails(ExtCall.GET_INFLIGHT_FD, pack_u64(size)) == errno.EINVAL
