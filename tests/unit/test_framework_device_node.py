"""Spec section "Device fd, /dev/vduse/NAME"."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.node_bench import LIVE, Bench
from vduse.bus.errors import DeviceRefused
from vduse.bus.iotlb import Mapping, SharedFile
from vduse.control.abi import (
    DevRequest,
    DevResponse,
    DevSetConfig,
    DirtyLog,
    ExtCall,
    Ioctl,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    UpdateIotlb,
    UpdateLog,
    VqConfig,
    VqEventfd,
    VqInfo,
    pack_u32,
    unpack_u64,
)
from vduse.control.features import Feature
from vduse.framework.vdpa_device import Provision, VdpaDevice


class TestOpenAndRelease:
    def test_one_opener(self, bench: Bench) -> None:
        with pytest.raises(OSError) as caught:
            bench.open()
        assert caught.value.errno == errno.EBUSY
        bench.node.release()
        bench.open()

    def test_a_destroyed_device_is_enodev(self, bench: Bench) -> None:
        bench.node.release()
        bench.device.destroyed = True
        with pytest.raises(OSError) as caught:
            bench.open()
        assert caught.value.errno == errno.ENODEV

    def test_release_replays_unanswered_messages_to_the_next_opener(self, bench: Bench) -> None:
        queued = threading.Semaphore(0)
        bench.device.messages.on_queued = queued.release
        with ThreadPoolExecutor(2) as pool:
            for status in (1, 3):
                sent = pool.submit(bench.device.send_status, status)
                assert queued.acquire(timeout=60)
            first = bench.node.read_messages()
            assert len(first) == 2
            bench.node.release()
            bench.node = bench.open()
            assert bench.node.read_messages() == first
            for data in first:
                bench.node.write_response(DevResponse(DevRequest.unpack(data).request_id).pack())
            sent.result(60)

    def test_release_does_not_reset(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        vdpa.set_status(1)
        bench.node.release()
        assert vdpa.get_status() == 1

    def test_short_response_is_einval(self, bench: Bench) -> None:
        with pytest.raises(OSError) as caught:
            bench.node.write_response(bytes(151))
        assert caught.value.errno == errno.EINVAL

    def test_every_ioctl_of_a_broken_device_is_eperm(self, bench: Bench) -> None:
        bench.device.messages.break_device("test")
        for nr in (*Ioctl, *ExtCall, 0):
            assert bench.fails(nr) == errno.EPERM
        with pytest.raises(PermissionError):  # whoever takes irqs without the node
            bench.device.irqs.inject(0)
        assert bench.node.poll() == select.POLLERR
        bench.node.release()
        bench.node = bench.open()
        assert bench.fails(Ioctl.DEV_GET_FEATURES) == errno.EPERM


class TestIotlb:
    """IOTLB_GET_FD, IOTLB_GET_FD2, IOTLB_GET_INFO."""

    @pytest.fixture
    def mapped(self, bench: Bench) -> Iterator[Bench]:
        vdpa = bench.attach()
        bench.agreeing()
        fd = os.memfd_create("test")
        os.ftruncate(fd, 0x4000)
        file = SharedFile(fd)
        vdpa.set_map(
            [Mapping(0x5000, 0x5FFF, file, 0x1000, 1), Mapping(0x1000, 0x1FFF, file, 0, 3)]
        )
        yield bench
        os.close(fd)

    @pytest.mark.parametrize(
        ("start", "last"), [(0, 2**64 - 1), (0x1FFF, 0x5000), (0x1000, 0x1000)]
    )
    def test_get_fd_returns_the_first_overlap(self, mapped: Bench, start: int, last: int) -> None:
        answer, fd = mapped.fd(Ioctl.IOTLB_GET_FD, IotlbEntry(start=start, last=last).pack())
        assert IotlbEntry.unpack(answer) == IotlbEntry(0, 0x1000, 0x1FFF, 3)
        assert os.fstat(fd).st_size == 0x4000
        os.close(fd)

    @pytest.mark.parametrize(
        ("start", "last"), [(2, 1), (0, 0xFFF), (0x2000, 0x4FFF), (0x6000, 2**64 - 1)]
    )
    def test_einval(self, mapped: Bench, start: int, last: int) -> None:
        assert mapped.fails(Ioctl.IOTLB_GET_FD, IotlbEntry(0, start, last).pack()) == errno.EINVAL
        assert mapped.fails(Ioctl.IOTLB_GET_INFO, IovaInfo(start, last).pack()) == errno.EINVAL

    def test_einval_without_a_domain(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.IOTLB_GET_FD, IotlbEntry(last=9).pack()) == errno.EINVAL
        assert bench.fails(Ioctl.IOTLB_GET_INFO, IovaInfo(0, 9).pack()) == errno.EINVAL

    def test_get_info_has_no_cap_umem_outside_the_bounce_region(self, mapped: Bench) -> None:
        answer = mapped.ok(Ioctl.IOTLB_GET_INFO, IovaInfo(0x5001, 0x5002).pack())
        assert IovaInfo.unpack(answer) == IovaInfo(0x5000, 0x5FFF)

    def test_get_fd2_is_enotty_on_v0(self, mapped: Bench) -> None:
        payload = IotlbEntryV2(IotlbEntry(last=9)).pack()
        assert mapped.fails(Ioctl.IOTLB_GET_FD2, payload) == errno.ENOTTY

    def test_get_fd2_on_v1(self, bench_v1: Bench) -> None:
        vdpa = bench_v1.attach()
        bench_v1.agreeing()
        with open(os.devnull, "rb") as null:
            vdpa.set_map([Mapping(0x1000, 0x1FFF, SharedFile(null.fileno()), 0, 3)])
        wanted = IotlbEntry(last=0x1000)
        answer, fd = bench_v1.fd(Ioctl.IOTLB_GET_FD2, IotlbEntryV2(wanted).pack())
        os.close(fd)
        assert IotlbEntryV2.unpack(answer) == IotlbEntryV2(IotlbEntry(0, 0x1000, 0x1FFF, 3))
        for bad in (IotlbEntryV2(wanted, asid=1), IotlbEntryV2(wanted, 0, b"\1" + bytes(43))):
            assert bench_v1.fails(Ioctl.IOTLB_GET_FD2, bad.pack()) == errno.EINVAL

    def test_get_info_on_7_2_answers_a_bad_asid_with_efault(self, bench_v1: Bench) -> None:
        assert bench_v1.fails(Ioctl.IOTLB_GET_INFO, IovaInfo(0, 9, asid=1).pack()) == errno.EFAULT
        assert bench_v1.fails(Ioctl.IOTLB_GET_INFO, IovaInfo(9, 0, asid=1).pack()) == errno.EINVAL

    def test_a_failed_update_iotlb_leaves_nothing_mapped(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.answering(lambda request: DevResponse(request.request_id, result=1))
        with open(os.devnull, "rb") as null, pytest.raises(OSError):
            vdpa.set_map([Mapping(0, 9, SharedFile(null.fileno()), 0, 3)])
        assert bench.fails(Ioctl.IOTLB_GET_FD, IotlbEntry(last=9).pack()) == errno.EINVAL

    def test_set_map_sends_update_iotlb_of_everything(self, bench: Bench) -> None:
        vdpa = bench.attach()
        seen = bench.agreeing()
        vdpa.set_map([])
        assert [request.message for request in seen] == [UpdateIotlb(0, 2**64 - 1)]


class TestConfig:
    """DEV_SET_CONFIG, DEV_INJECT_CONFIG_IRQ."""

    def test_set_config_changes_no_generation(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.ok(Ioctl.DEV_SET_CONFIG, DevSetConfig(58, b"ab").pack())
        assert vdpa.get_config(56, 4) == b"\0\0ab"
        assert vdpa.get_generation() == 0

    @pytest.mark.parametrize(("offset", "data"), [(0, b""), (60, b"a"), (61, b"a"), (59, b"ab")])
    def test_set_config_einval(self, bench: Bench, offset: int, data: bytes) -> None:
        assert bench.fails(Ioctl.DEV_SET_CONFIG, DevSetConfig(offset, data).pack()) == errno.EINVAL

    def test_config_reads_are_zero_filled_and_writes_dropped(self, bench: Bench) -> None:
        vdpa = bench.attach()
        vdpa.set_config(0, b"\xff" * 8)
        assert vdpa.get_config(0, 8) == (2048).to_bytes(8, "little")
        assert vdpa.get_config(58, 8) == bytes(8)
        assert vdpa.get_config(4096, 4) == bytes(4)

    def test_config_irq_needs_driver_ok(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        assert bench.fails(Ioctl.DEV_INJECT_CONFIG_IRQ) == errno.EINVAL
        called = threading.Event()
        threads: list[threading.Thread] = []

        def callback() -> None:
            threads.append(threading.current_thread())
            called.set()

        vdpa.set_config_cb(callback)
        vdpa.set_status(LIVE)
        bench.ok(Ioctl.DEV_INJECT_CONFIG_IRQ)
        assert called.wait(60)
        assert threads != [threading.current_thread()]

    def test_status_is_stored_only_after_the_answer(self, bench: Bench) -> None:
        vdpa = bench.attach()
        errors: list[int] = []

        def reply(request: DevRequest) -> DevResponse:
            errors.append(bench.fails(Ioctl.DEV_INJECT_CONFIG_IRQ))
            return DevResponse(request.request_id)

        bench.answering(reply)
        vdpa.set_status(LIVE)
        assert errors == [errno.EINVAL]

    def test_features_are_whatever_the_driver_wrote(self, bench: Bench) -> None:
        vdpa = bench.attach()
        vdpa.set_driver_features(1 << 63)
        assert unpack_u64(bench.ok(Ioctl.DEV_GET_FEATURES)) == 1 << 63


class TestVqSetup:
    def test_index_and_reserved_are_einval(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.VQ_SETUP, VqConfig(2, 64).pack()) == errno.EINVAL
        bad = VqConfig(0, 64, reserved=b"\1" + bytes(21))
        assert bench.fails(Ioctl.VQ_SETUP, bad.pack()) == errno.EINVAL

    def test_group_on_v0_is_einval(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.VQ_SETUP, VqConfig(0, 64, group=1).pack()) == errno.EINVAL

    def test_group_on_v1(self, bench_v1: Bench) -> None:
        bench_v1.ok(Ioctl.VQ_SETUP, VqConfig(0, 64, group=1).pack())
        assert bench_v1.fails(Ioctl.VQ_SETUP, VqConfig(0, 64, group=2).pack()) == errno.EINVAL

    @pytest.mark.parametrize(("version", "expected"), [("bench", 0), ("bench_v1", errno.EINVAL)])
    def test_under_driver_ok_v1_is_einval(
        self, request: pytest.FixtureRequest, version: str, expected: int
    ) -> None:
        bench: Bench = request.getfixturevalue(version)
        bench.device.status = LIVE
        if expected:
            assert bench.fails(Ioctl.VQ_SETUP, VqConfig(0, 64).pack()) == expected
        else:
            bench.ok(Ioctl.VQ_SETUP, VqConfig(0, 64).pack())

    def test_a_queue_of_no_size_is_not_set_up(self, bench: Bench) -> None:
        bench.ok(Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
        bench.ok(Ioctl.VQ_SETUP, VqConfig(1, 0).pack())
        with pytest.raises(OSError) as caught:
            VdpaDevice(bench.device, Provision())
        assert caught.value.errno == errno.EINVAL


class TestVqGetInfo:
    def test_index_is_einval(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.VQ_GET_INFO, VqInfo(2).pack()) == errno.EINVAL

    @pytest.mark.parametrize(
        ("features", "position"), [(0, (77,)), (Feature.RING_PACKED, (5, 1, 6, 0))]
    )
    def test_split_or_packed_by_the_negotiated_feature(
        self, bench: Bench, features: int, position: tuple[int, ...]
    ) -> None:
        vdpa = bench.attach()
        vdpa.set_driver_features(features)
        vdpa.set_vq_num(1, 32)
        vdpa.set_vq_address(1, 0x1000, 0x2000, 0x3000)
        vdpa.set_vq_state(1, position)
        vdpa.set_vq_ready(1, True)
        info = VqInfo.unpack(bench.ok(Ioctl.VQ_GET_INFO, VqInfo(1).pack()))
        assert (info.num, info.ready) == (32, True)
        assert (info.desc_addr, info.driver_addr, info.device_addr) == (0x1000, 0x2000, 0x3000)
        if features:
            assert info.state == b"".join(v.to_bytes(2, "little") for v in (1, 5, 0, 6))
        else:
            assert info.state == (77).to_bytes(2, "little") + bytes(6)

    def test_get_vq_state_asks_the_device_and_masks_packed(self, bench: Bench) -> None:
        vdpa = bench.attach()
        vdpa.set_driver_features(Feature.RING_PACKED)
        bench.answering(lambda request: DevResponse(request.request_id, vq_state=b"\xff" * 8))
        assert vdpa.get_vq_state(1) == (0x7FFF, 1, 0x7FFF, 1)


class TestKickfd:
    def test_errors(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.VQ_SETUP_KICKFD, VqEventfd(2, -1).pack()) == errno.EINVAL
        assert bench.fails(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, 3).pack()) == errno.EBADF
        with open(os.devnull, "rb") as null:
            error = bench.fails(
                Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, null.fileno()).pack(), [null.fileno()]
            )
        assert error == errno.EINVAL

    def test_kicks_reach_it_while_the_queue_is_ready(self, bench: Bench) -> None:
        vdpa = bench.attach()
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        bench.ok(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, fd).pack(), [fd])
        vdpa.kick_vq(0)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        vdpa.set_vq_ready(0, True)
        vdpa.kick_vq(0)
        assert os.eventfd_read(fd) == 1
        bench.ok(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, -2).pack())  # other negatives do nothing
        vdpa.kick_vq(0)
        assert os.eventfd_read(fd) == 1
        bench.ok(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, -1).pack())
        vdpa.kick_vq(0)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        # The kick that found no eventfd is made up for.
        bench.ok(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, fd).pack(), [fd])
        assert os.eventfd_read(fd) == 1
        os.close(fd)


class TestVqIrq:
    def test_index_is_einval(self, bench: Bench) -> None:
        assert bench.fails(Ioctl.VQ_INJECT_IRQ, pack_u32(2)) == errno.EINVAL

    def test_einval_before_driver_ok(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        vdpa.set_vq_ready(0, True)
        assert bench.fails(Ioctl.VQ_INJECT_IRQ, pack_u32(0)) == errno.EINVAL
        vdpa.set_status(LIVE)
        bench.ok(Ioctl.VQ_INJECT_IRQ, pack_u32(0))
        assert os.eventfd_read(vdpa.vq_line(0).callfd) == 1

    def test_a_vhost_vdpa_call_eventfd_needs_only_the_queue_ready(self, bench: Bench) -> None:
        vdpa = bench.attach()
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        vdpa.set_vq_cb(0, fd)
        assert bench.fails(Ioctl.VQ_INJECT_IRQ, pack_u32(0)) == errno.EINVAL
        vdpa.set_vq_ready(0, True)
        bench.ok(Ioctl.VQ_INJECT_IRQ, pack_u32(0))
        assert os.eventfd_read(fd) == 1
        os.close(fd)


class TestReset:
    def test_reset_drops_state_even_where_the_message_failed(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        kick = os.eventfd(0, os.EFD_NONBLOCK)
        bench.ok(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, kick).pack(), [kick])
        vdpa.set_driver_features(Feature.VERSION_1)
        vdpa.set_vq_num(0, 8)
        vdpa.set_vq_ready(0, True)
        vdpa.set_status(LIVE)
        bench.answering(lambda request: DevResponse(request.request_id, result=1))
        with pytest.raises(OSError) as caught:
            vdpa.reset()
        assert caught.value.errno == errno.EIO
        assert (vdpa.get_status(), vdpa.get_driver_features(), vdpa.get_generation()) == (0, 0, 1)
        assert VqInfo.unpack(bench.ok(Ioctl.VQ_GET_INFO, VqInfo(0).pack())) == VqInfo(0)
        vdpa.set_vq_ready(0, True)
        vdpa.kick_vq(0)
        with pytest.raises(BlockingIOError):  # the kickfd was released
            os.eventfd_read(kick)
        os.close(kick)

    def test_reset_keeps_the_queue_sizes_that_the_device_set_up(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.agreeing()
        vdpa.reset()
        assert vdpa.get_vq_num_max() == 64


class TestDirtyLog:
    """docs/channel.md, LOG_GET_FD and UPDATE_LOG."""

    LOG = DirtyLog(4096, 64, ((1, 0x3000),))

    def test_a_program_that_never_asked_marks_nothing(self, bench: Bench) -> None:
        vdpa = bench.attach()
        assert not vdpa.can_log
        with pytest.raises(OSError) as caught:
            vdpa.set_log(self.LOG, 0)
        assert caught.value.errno == errno.EOPNOTSUPP

    def test_the_program_is_told_and_gets_log_and_file(self, bench: Bench) -> None:
        vdpa = bench.attach()
        seen = bench.agreeing()
        assert bench.node.ioctl(ExtCall.LOG_GET_FD, b"", []) == (-errno.ENOENT, b"", [])
        assert vdpa.can_log
        file = os.memfd_create("log")
        vdpa.set_log(self.LOG, file)
        answer, fd = bench.fd(ExtCall.LOG_GET_FD, b"")
        assert DirtyLog.unpack(answer) == self.LOG
        assert os.path.samestat(os.fstat(fd), os.fstat(file))
        vdpa.set_log(None, -1)
        assert [request.message for request in seen] == [UpdateLog(), UpdateLog()]
        assert bench.node.ioctl(ExtCall.LOG_GET_FD, b"", [])[0] == -errno.ENOENT
        vdpa.set_log(self.LOG, file)
        vdpa.reset()
        assert bench.node.ioctl(ExtCall.LOG_GET_FD, b"", [])[0] == -errno.ENOENT
        os.close(file)
        os.close(fd)

    def test_a_log_that_the_program_refuses_leaves_the_one_before(self, bench: Bench) -> None:
        vdpa = bench.attach()
        bench.node.ioctl(ExtCall.LOG_GET_FD, b"", [])
        file = os.memfd_create("log")
        bench.agreeing()
        vdpa.set_log(self.LOG, file)
        bench.answering(lambda request: DevResponse(request.request_id, 1))
        with pytest.raises(DeviceRefused):
            vdpa.set_log(DirtyLog(0, 1), file)
        assert DirtyLog.unpack(bench.ok(ExtCall.LOG_GET_FD)) == self.LOG
        os.close(file)


def test_unknown_ioctl_is_enotty(bench: Bench) -> None:
    assert bench.fails(0x1234) == errno.ENOTTY


@pytest.mark.parametrize("nr", [nr for nr in Ioctl if nr >> 16 & 0x3FFF and nr >> 30 != 2])
def test_a_payload_that_is_no_struct_is_a_value_error(bench_v1: Bench, nr: Ioctl) -> None:
    if nr & 0xFF < 0x10:
        return
    with pytest.raises(ValueError):
        bench_v1.node.ioctl(nr, b"x", [])


class TestAttributes:
    """/sys/class/vduse/NAME."""

    def test_bounce_size_is_page_masked_and_within_range(self, bench: Bench) -> None:
        bench.device.bounce_size = (1 << 20) + 4097
        assert bench.device.bounce_size == (1 << 20) + 4096
        for size in ((1 << 20) - 1, (1 << 30) + 1):
            with pytest.raises(OSError) as caught:
                bench.device.bounce_size = size
            assert caught.value.errno == errno.EINVAL

    def test_bounce_size_is_refused_once_a_domain_exists(self, bench: Bench) -> None:
        vdpa = bench.attach()
        vdpa.detach()
        with pytest.raises(OSError) as caught:
            bench.device.bounce_size = 2 << 20
        assert caught.value.errno == errno.EPERM

    def test_msg_timeout_is_not_negative(self, bench: Bench) -> None:
        bench.device.msg_timeout = 0
        with pytest.raises(OSError) as caught:
            bench.device.msg_timeout = -1
        assert caught.value.errno == errno.EINVAL
