"""Supervised programs that do what they should not, and places where less is allowed."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.held import nothing_left
from tests.means import SYSTEM_PYTHON
from tests.rules.tree import ROOT
from tests.unit.supervised_stage import (
    GET_API_VERSION,
    PYTHON,
    VQ_GET_INFO,
    VQ_SETUP_KICKFD,
    opening,
    program,
    unexpected,
)
from vduse._native import NodeCall

_NOBODY = 65534


class TestMemory:
    def test_structs_that_are_not_there_are_efault(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            number = {'x86_64': 16}.get(os.uname().machine, 29)
            call = lambda nr, address: print(failed(syscall, number, fd, nr, address))
            call(VQ_GET_INFO, 8)
            call(VQ_GET_INFO, -8)
            call(GET_API_VERSION, 0)
            call(CREATE_DEV, 1 << 62)
            libc.mmap.restype = ctypes.c_void_p
            pages = libc.mmap(None, 8192, 3, 0x22, -1, 0)
            libc.mprotect(ctypes.c_void_p(pages + 4096), 4096, 0)
            call(VQ_GET_INFO, pages + 4096 - 8)
            libc.mprotect(ctypes.c_void_p(pages), 4096, 1)
            call(GET_API_VERSION, pages)
            """
        seen = []

        def ioctl(call: NodeCall) -> None:
            seen.append(call.payload)
            if call.nr in (VQ_GET_INFO, GET_API_VERSION):
                call.reply(0, bytes(call.nr >> 16 & 0x3FFF))
            else:
                call.reply(-errno.EINVAL)

        with program(script) as running:
            output = running.serve(opening(running, ioctl))
        assert output.split() == ["EFAULT", "EFAULT", "EFAULT", "EINVAL", "EFAULT", "EFAULT"]
        assert seen == [b""] * 6

    def test_where_a_stat_cannot_be_written_it_is_efault(self) -> None:
        script = (
            "print(failed(syscall, {'x86_64': 262}.get(os.uname().machine, 79), -100, at, 8, 0))"
        )
        script = (
            "path = ctypes.create_string_buffer(b'/dev/vduse/d')\n"
            f"at = ctypes.addressof(path)\n{script}"
        )
        with program(script) as running:
            running.next().reply_stat(stat.S_IFCHR, 0)
            assert running.serve(unexpected) == "EFAULT\n"

    @pytest.mark.needs("system-python")
    def test_memory_that_may_not_be_read_is_told_once(self) -> None:
        # Only another user's supervisor is refused; root may read everything.
        done = in_a_process("unreadable", user=_NOBODY)
        assert "the memory of thread" in done
        assert "ENODEV" not in done


class TestDeath:
    def test_a_caller_killed_in_mid_call_needs_no_answer(self) -> None:
        script = "ioctl(os.open('/dev/vduse/d', os.O_RDWR), VQ_SETUP_KICKFD, bytes(8))"
        with program(script) as running:
            running.open(running.next())
            call = running.next()
            os.kill(running.supervised.pid, signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
            with pytest.raises(OSError) as raised:
                call.kick_fd()
            assert raised.value.errno in (errno.ESRCH, errno.ENOENT)
            assert call.pid == call.tid
            assert call.reply_fd(0, cloexec=True) is False

    @pytest.mark.parametrize("answer", ["reply", "drop", "stat"])
    def test_nor_does_one_that_is_killed_before_its_open_is_answered(self, answer: str) -> None:
        ask = "os.stat" if answer == "stat" else "lambda path: os.open(path, os.O_RDWR)"
        with program(f"({ask})('/dev/vduse/d')") as running:
            call = running.next()
            os.kill(running.supervised.pid, signal.SIGKILL)
            assert running.wait() == -signal.SIGKILL
            if answer == "reply":
                call.reply(0)
            elif answer == "stat":
                call.reply_stat(stat.S_IFCHR, 0)
            del call
            while not running.supervised.ended:
                running.calls()

    def test_a_signal_does_not_end_a_call_that_was_received(self) -> None:
        script = """
            signal.signal(signal.SIGUSR1, lambda *_: print('signal'))
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            print(ioctl(fd, GET_API_VERSION, bytes(8))[0])
            """
        with program(script) as running:
            running.open(running.next())
            call = running.next()
            os.kill(running.supervised.pid, signal.SIGUSR1)
            call.reply(5, bytes(8))
            output = running.serve(unexpected)
        assert sorted(output.split()) == ["5", "signal"]

    def test_threads_that_die_calling_leave_nothing(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    for _ in range(10):
                        threading.Thread(target=ioctl, args=(fd, VQ_GET_INFO, bytes(48))).start()
                    signal.alarm(0)
                    os.kill(os.getpid(), signal.SIGKILL)
                os.waitpid(child, 0)
            ioctl(fd, GET_API_VERSION, bytes(8))
            """
        with program(script) as running:
            running.open(running.next())
            last: list[NodeCall] = []
            while not last:
                last = [call for call in running.calls() if call.nr == GET_API_VERSION]
            last[0].reply(0, bytes(8))
            running.serve(unexpected)

    def test_the_supervisors_death_is_the_programs(self) -> None:
        body = """
            from tests.unit.supervised_stage import Program
            running = Program("import time; os.open('/dev/vduse/d', os.O_RDWR)")
            running.next()
            print(running.supervised.pid, flush=True)
            import time
            time.sleep(1000)
            """
        supervisor = subprocess.Popen(
            [sys.executable, "-c", "\n".join(line[12:] for line in body.splitlines())],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert supervisor.stdout is not None
        with supervisor.stdout:
            pidfd = os.pidfd_open(int(supervisor.stdout.readline()))
        try:
            supervisor.kill()
            supervisor.wait()
            assert select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)


class TestBounds:
    def test_an_fd_that_finds_no_room_in_the_program_is_emfile(self) -> None:
        script = """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            print(failed(os.open, '/dev/vduse/d', os.O_RDWR))
            """
        with program(script) as running:
            call = running.next()
            with open(os.devnull) as nothing:
                assert call.reply_fd(nothing.fileno(), cloexec=True) is False
            assert running.serve(unexpected) == "EMFILE\n"

    def test_a_storm_of_opens_is_let_through_or_answered(self) -> None:
        script = """
            for number in range(500):
                failed(os.open, '/dev/vduse/' + 'x' * number, os.O_RDWR)
                failed(os.open, '/dev/vduse' + 'x' * number, os.O_RDWR)
                failed(os.stat, '/' + 'dev/../' * number + 'dev/vduse/x')
            failed(os.open, '/dev/vduse/' + 'x' * 5000, os.O_RDWR)
            os.open(b'/dev/vduse/\\xff', os.O_RDWR)
            """
        paths = []

        def handle(call: NodeCall) -> None:
            paths.append(call.path)
            call.reply(0 if call.path.endswith("\udcff") else -errno.ENOENT)

        with program(script) as running:
            running.serve(handle)
        assert len(paths) == 500 + 1 + 500 + 1


class TestForeign:
    def test_calls_of_another_convention_are_enosys_and_told_once(self) -> None:
        script = """
            if os.uname().machine == 'x86_64':
                for _ in range(3):
                    print(failed(syscall, 0x40000000 + 39))
            else:
                print('ENOSYS\\n' * 3)
            print(failed(syscall, -1))
            """
        with program(script) as running:
            output = running.serve(unexpected)
            notices, stats = running.supervised.notices(), running.supervised.stats()
        assert output.split() == ["ENOSYS"] * 4
        if os.uname().machine == "x86_64":
            assert stats["foreign"] == 3
            [notice] = notices
            assert "system calls of another architecture (32-bit or x32)" in notice

    def test_io_uring_is_told_of(self) -> None:
        script = "failed(syscall, 425, 1, ctypes.addressof(ctypes.create_string_buffer(120)))"
        with program(script) as running:
            running.serve(unexpected)
            assert running.supervised.stats()["io_uring"] == 1
            [notice] = running.supervised.notices()
        assert "io_uring" in notice


class TestLessAllowed:
    @pytest.mark.needs("system-python")
    def test_an_ordinary_user_without_capabilities(self) -> None:
        assert in_a_process("everything", user=_NOBODY) == "7 hello /dev/vduse/control False\n"

    def test_a_process_that_is_refused_pidfd_getfd(self) -> None:
        assert in_a_process("everything", refuse="pidfd_getfd") == (
            "7 hello /dev/vduse/control True\n"
        )

    def test_an_eventfd_of_several_queues_is_replaced_once(self) -> None:
        assert in_a_process("one_kick_for_all", refuse="pidfd_getfd") == "11 True False\n"

    def test_a_process_that_is_refused_process_vm_readv(self) -> None:
        assert in_a_process("everything", refuse="process_vm") == (
            "7 hello /dev/vduse/control False\n"
        )

    def test_a_process_that_is_refused_seccomp(self) -> None:
        done = in_a_process("nothing", refuse="seccomp")
        assert done == "EPERM seccomp(2) is refused here: Operation not permitted\n"


_REFUSED = {
    "pidfd_getfd": ["pidfd_getfd"],
    "process_vm": ["process_vm_readv", "process_vm_writev"],
    "seccomp": ["seccomp"],
}

#: A program that uses what depends on rights: its memory, its fds and its eventfd.
_EVERYTHING = """
import fcntl, os, struct
fd = os.open('/dev/vduse/control', os.O_RDWR)
kick = os.eventfd(2, os.EFD_NONBLOCK)
fcntl.ioctl(fd, 0x40088116, struct.pack('Ii', 0, kick))
buffer = bytearray(8)
fcntl.ioctl(fd, 0x80088100, buffer, True)
print(os.eventfd_read(kick), bytes(buffer[:5]).decode(), end=' ', flush=True)
"""


def _any_users_python() -> str:
    """This interpreter, unless another user may not have it."""
    return PYTHON if os.access(PYTHON, os.X_OK) else SYSTEM_PYTHON


def everything() -> None:
    """Serves the program; says whether its eventfd was replaced."""
    paths = []

    def ioctl(call: NodeCall) -> None:
        if call.nr == VQ_SETUP_KICKFD:
            kick = call.kick_fd()
            os.eventfd_write(kick, 5)
            os.close(kick)
            call.reply(0)
        else:
            call.reply(0, b"hello\0\0\0")

    with program(_EVERYTHING, python=_any_users_python()) as running:
        handler = opening(running, ioctl)

        def handle(call: NodeCall) -> None:
            if call.kind == "open":
                paths.append(call.path)
            handler(call)

        output = running.serve(handle)
        print(output, *paths, " ", bool(running.supervised.notices()), sep="")


def one_kick_for_all() -> None:
    """A program whose virtqueues have one eventfd, with a count that nobody has read."""
    script = """
        fd = os.open('/dev/vduse/d', os.O_RDWR)
        kick = os.eventfd(2, os.EFD_CLOEXEC)
        for index in range(3):
            ioctl(fd, VQ_SETUP_KICKFD, struct.pack('Ii', index, kick))
        ioctl(fd, GET_API_VERSION, bytes(8))
        print(os.eventfd_read(kick), os.get_blocking(kick), os.get_inheritable(kick))
        """
    kicks = []

    def ioctl(call: NodeCall) -> None:
        if call.nr == VQ_SETUP_KICKFD:
            kicks.append(call.kick_fd())
        for kick in kicks if call.nr == GET_API_VERSION else ():
            os.eventfd_write(kick, 3)
            os.close(kick)
        call.reply(0)

    with program(script) as running:
        print(running.serve(opening(running, ioctl)), end="")


def unreadable() -> None:
    """A program whose memory its own user may not read."""
    script = """
        libc.prctl(4, 0)
        for _ in range(3):
            print(failed(os.open, '/dev/vduse/d', os.O_RDWR))
        """
    with program(script, python=_any_users_python()) as running:
        print(running.serve(unexpected), *running.supervised.notices())


def nothing() -> None:
    """Nothing can be started."""
    try:
        with program(""):
            pass
    except OSError as error:
        print(errno.errorcode[error.errno or 0], error.strerror)


def in_a_process(body: str, *, user: int | None = None, refuse: str | None = None) -> str:
    """Runs one of the functions above in a process of its own, with another user's rights where
    this one can give them up, or under a filter; what it prints."""
    lines = [
        "import os",
        f"from tests.unit.test_native_supervised_hostile import {body}",
        "from tests.system import seccomp",
    ]
    if user is not None and os.geteuid() == 0:
        lines += ["os.setgroups([])", f"os.setresgid({user}, {user}, {user})"]
        lines += [f"os.setresuid({user}, {user}, {user})"]
    if refuse is not None:
        lines += [f"seccomp.refuse(dict.fromkeys({_REFUSED[refuse]!r}, 1))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, f"{body}()"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    with nothing_left():
        yield
