"""The framework half of the native module: what Python sees of domain, arena, lines, driver."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from vduse import _native

MIB = 1 << 20
FLUSH, DISCARD, RO = 1 << 9, 1 << 13, 1 << 5


def config_space(sectors: int = 2048) -> bytes:
    return struct.pack("<Q52x", sectors)


def in_child(check: Callable[[], bool]) -> bool:
    """What ``check`` says in a forked child."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def refuses(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError as error:
        return "fork" in str(error)
    return False


# --- domain --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, MIB - 4096, MIB + 1, (1 << 30) + 4096])
def test_bounce_size_out_of_range_is_einval(size: int) -> None:
    with pytest.raises(OSError) as caught:
        _native.Domain(size)
    assert caught.value.errno == errno.EINVAL


def test_coherent_entries_appear_with_a_driver_and_lie_above_the_bounce_region() -> None:
    domain = _native.Domain(MIB)
    assert domain.entries() == []
    driver = _native.BlkDriver(domain, 0, config_space(), [8], [_native.VqLine()])
    entries = domain.entries()
    starts = [start for start, _, _, _ in entries]
    assert set(driver.areas(0)) <= set(starts)
    for start, last, offset, perm in entries:
        assert start == offset >= MIB
        assert (last + 1 - start) % 4096 == 0
        assert perm == 3
    assert not domain.bounce_mapped
    assert domain.stats()["coherent_bytes"] == sum(e[1] + 1 - e[0] for e in entries)
    del driver
    assert domain.entries() == []


def test_the_device_cannot_truncate_a_domain() -> None:
    domain = _native.Domain(MIB)
    with pytest.raises(PermissionError):
        os.ftruncate(domain.fd, 0)


def test_umem_needs_a_mapped_bounce_region_and_dereg_a_registered_one() -> None:
    domain = _native.Domain(MIB)
    with pytest.raises(OSError) as caught:
        domain.reg_umem(os.getpid(), 0x10000)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(FileNotFoundError):
        domain.dereg_umem()


# --- arena ---------------------------------------------------------------------------------


def test_arena_bytes_are_the_files_bytes() -> None:
    arena = _native.Arena(65536, 1 << 32)
    arena.write(100, b"hello")
    assert os.pread(arena.fd, 5, 100) == b"hello" == arena.read(100, 5)
    assert (arena.size, arena.iova) == (65536, 1 << 32)
    for offset, length in ((65535, 2), (0, 1 << 50)):
        with pytest.raises(ValueError):
            arena.read(offset, length)
    arena.truncate(0)
    assert os.fstat(arena.fd).st_size == 0


# --- lines ---------------------------------------------------------------------------------


def test_a_kick_is_remembered_until_there_is_a_kickfd() -> None:
    line = _native.VqLine()
    line.kick()
    assert line.kicked
    line.clear_kicked()
    fd = os.eventfd(0)
    line.set_kickfd(fd)
    line.kick()
    assert not line.kicked
    assert os.eventfd_read(fd) == 1
    line.set_kickfd(-1)
    line.kick()
    assert line.kicked
    assert line.stats() == {"kicks": 3, "irqs": 0}
    os.close(fd)


def test_only_an_eventfd_is_a_kickfd() -> None:
    line = _native.VqLine()
    reader, writer = os.pipe()
    with pytest.raises(OSError) as caught:
        line.set_kickfd(writer)
    assert caught.value.errno == errno.EINVAL
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError) as caught:
        line.set_kickfd(writer)
    assert caught.value.errno == errno.EBADF


def test_irqs_go_to_a_foreign_pipe_and_never_block() -> None:
    line = _native.VqLine()
    line.inject()
    assert os.eventfd_read(line.callfd) == 1
    reader, writer = os.pipe()
    line.set_callfd(writer)
    for _ in range(20_000):
        line.inject()
    assert os.read(reader, 8) == struct.pack("=Q", 1)
    line.set_callfd(-1)
    line.inject()
    assert os.eventfd_read(line.callfd) == 1
    os.close(reader)
    os.close(writer)


# --- irq gate ------------------------------------------------------------------------------


def test_irqs_are_taken_under_driver_ok_and_reach_ready_queues() -> None:
    lines = [_native.VqLine(), _native.VqLine()]
    gate = _native.IrqGate(lines)
    inject = partial(gate.inject, 1)
    assert error_of(inject) == errno.EINVAL
    gate.set_driver_ok(True)
    gate.inject(1)
    lines[1].set_ready(False)
    gate.inject(1)
    assert [line.stats()["irqs"] for line in lines] == [0, 1]
    assert error_of(partial(gate.inject, 2)) == errno.EINVAL
    gate.set_broken()
    assert error_of(inject) == errno.EPERM
    with pytest.raises(OverflowError):
        gate.inject(-1)


def test_a_drivers_own_eventfd_is_signalled_without_driver_ok() -> None:
    line = _native.VqLine()
    gate = _native.IrqGate([line])
    call = os.eventfd(0)
    line.set_callfd(call)
    gate.inject(0)
    assert os.eventfd_read(call) == 1
    line.set_ready(False)
    assert error_of(partial(gate.inject, 0)) == errno.EINVAL
    os.close(call)


# --- driver --------------------------------------------------------------------------------


class Idle:
    """A driver whose device never answers."""

    def __init__(self, features: int = FLUSH) -> None:
        self.domain = _native.Domain(MIB)
        self.line = _native.VqLine()
        self.driver = _native.BlkDriver(self.domain, features, config_space(), [8], [self.line])


@pytest.fixture
def idle() -> Iterator[Idle]:
    idle = Idle()
    idle.driver.start()
    yield idle
    idle.driver.stop(errno.ENODEV)


def error_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_requests_before_the_start_are_enodev() -> None:
    assert error_of(Idle().driver.flush) == errno.ENODEV


def test_bad_ranges_are_einval(idle: Idle) -> None:
    driver = idle.driver
    assert driver.size == MIB
    for offset, length in ((1, 512), (0, 100), (-512, 512), (MIB, 512), (1 << 62, 512)):
        read = partial(driver.preadinto, offset, bytearray(length))
        assert error_of(read) == errno.EINVAL
    assert idle.line.stats()["kicks"] == 0


def test_a_read_only_or_scattered_buffer_is_refused(idle: Idle) -> None:
    with pytest.raises(TypeError, match="read-only"):
        idle.driver.preadinto(0, b"\0" * 512)
    with pytest.raises(BufferError, match="contiguous"):
        idle.driver.preadinto(0, memoryview(bytearray(1024))[::2])
    with pytest.raises(TypeError):
        idle.driver.pwrite(0, "text")  # type: ignore[arg-type]  # as a caller might


def test_features_decide_what_is_supported() -> None:
    read_only = Idle(RO)
    read_only.driver.start()
    assert read_only.driver.read_only
    assert error_of(lambda: read_only.driver.pwrite(0, bytes(512))) == errno.EROFS
    read_only.driver.flush()
    plain = Idle(0)
    plain.driver.start()
    assert error_of(lambda: plain.driver.discard(0, 512)) == errno.EOPNOTSUPP
    assert error_of(lambda: plain.driver.write_zeroes(0, 512)) == errno.EOPNOTSUPP


def test_a_setup_the_device_cannot_mean_is_einval() -> None:
    domain, line = _native.Domain(MIB), _native.VqLine()
    for config, sizes, lines in (
        (b"\0" * 7, [8], [line]),
        (config_space(), [8, 8], [line]),
        (config_space(), [2], [line]),
        (config_space(), [12], [line]),
    ):
        make = partial(_native.BlkDriver, domain, 0, config, sizes, lines)
        assert error_of(make) == errno.EINVAL
    assert domain.entries() == []


def test_buffers_are_held_until_reaped(idle: Idle) -> None:
    data = bytearray(512)
    (token,) = idle.driver.submit([("read", 0, data)])
    with pytest.raises(BufferError):
        data.extend(b"x")
    assert idle.driver.reap(timeout=0) == []
    assert idle.domain.bounce_mapped
    idle.driver.stop(errno.ESHUTDOWN)
    with pytest.raises(BufferError):
        data.extend(b"x")
    assert idle.driver.reap() == [(token, -errno.ESHUTDOWN)]
    data.extend(b"x")
    assert idle.domain.stats()["bounce_bytes_in_use"] == 0


def test_a_refused_request_of_a_batch_ends_by_its_token(idle: Idle) -> None:
    tokens = idle.driver.submit([("discard", 0, 512), ("write", MIB, bytes(512))])
    assert sorted(idle.driver.reap(2)) == [
        (tokens[0], -errno.EOPNOTSUPP),
        (tokens[1], -errno.EINVAL),
    ]
    with pytest.raises(ValueError, match="unknown request"):
        idle.driver.submit([("trim", 0, 512)])
    assert idle.driver.reap() == []


def test_stop_ends_a_waiting_call(idle: Idle) -> None:
    ended: list[int | None] = []
    thread = threading.Thread(target=lambda: ended.append(error_of(idle.driver.flush)))
    thread.start()
    while idle.driver.stats()["requests"] == 0:
        pass
    idle.driver.stop(errno.ESHUTDOWN)
    thread.join()
    assert ended == [errno.ESHUTDOWN]


@pytest.mark.parametrize("call", ["flush", "reap"])
def test_a_signal_ends_a_wait(idle: Idle, call: str) -> None:
    class Alarm(Exception):
        pass

    def on_alarm(signum: int, frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        tokens = idle.driver.submit([("flush", 0, None)])
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            getattr(idle.driver, call)()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    idle.driver.stop(errno.ENODEV)
    assert idle.driver.reap() == [(tokens[0], -errno.ENODEV)]


def test_a_config_interrupt_changes_the_size(idle: Idle) -> None:
    idle.driver.set_config(config_space(4096))
    assert idle.driver.size == 2 * MIB


def test_handles_refuse_use_in_a_forked_child(idle: Idle) -> None:
    arena, line = _native.Arena(4096, 0), idle.line
    assert in_child(
        lambda: (
            refuses(idle.domain.entries)
            and refuses(lambda: arena.read(0, 1))
            and refuses(line.kick)
            and refuses(idle.driver.flush)
        )
    )
    assert len(idle.domain.entries()) == 4
