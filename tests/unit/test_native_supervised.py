"""Programs under seccomp user notification: what they see when their calls are answered by hand
(seccomp_unotify(2), linux/vduse.h)."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import sys
from pathlib import Path

import pytest

from tests.unit.supervised_stage import (
    CREATE_DEV,
    DEV_SET_CONFIG,
    GET_API_VERSION,
    IOTLB_GET_FD,
    SET_API_VERSION,
    VQ_GET_INFO,
    VQ_INJECT_IRQ,
    opening,
    program,
    unexpected,
)
from vduse._native import IrqGate, NodeCall, Supervised, VqLine


class TestPaths:
    def test_an_open_gets_the_fd_that_it_is_answered_with(self) -> None:
        script = """
            fd = os.open('/dev/vduse/control', os.O_RDWR | os.O_CLOEXEC)
            os.write(fd, b'hello')
            print(os.get_inheritable(fd), os.read(fd, 100))
            """
        with program(script) as running:
            call = running.next()
            assert (call.kind, call.path, call.pid) == (
                "open",
                "/dev/vduse/control",
                running.supervised.pid,
            )
            assert call.tid == call.pid
            assert call.flags & (os.O_ACCMODE | os.O_CLOEXEC) == os.O_RDWR | os.O_CLOEXEC
            running.open(call)
            assert running.ours[1].recv(100) == b"hello"
            running.ours[1].send(b"and good day")
            assert running.serve(opening(running)) == "False b'and good day'\n"
            assert running.ours[1].recv(100) == b"", "its end closes the node"

    def test_without_o_cloexec_the_fd_is_inherited(self) -> None:
        # As opened by C: Python sets O_CLOEXEC itself.
        script = "print(os.get_inheritable(libc.open(b'/dev/vduse/control', os.O_RDWR)))"
        with program(script) as running:
            assert running.serve(opening(running)) == "True\n"

    def test_o_nonblock_goes_on_the_end_that_is_given(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR | os.O_NONBLOCK)
            print(failed(os.read, fd, 8))
            """
        with program(script) as running:
            assert running.serve(opening(running)) == "EAGAIN\n"

    def test_an_open_that_is_refused_fails_with_the_errno(self) -> None:
        with program("print(failed(os.open, '/dev/vduse/d', os.O_RDWR))") as running:
            running.next().reply(-errno.EBUSY)
            assert running.serve(opening(running)) == "EBUSY\n"

    def test_paths_are_known_however_they_are_written(self, tmp_path: Path) -> None:
        script = """
            os.chdir('/dev')
            folder = os.open('/dev', os.O_RDONLY)
            for path, dirfd in [
                ('//dev/./vduse/control', None),
                ('/tmp/../dev/vduse/control', None),
                ('vduse/control', None),
                ('../dev/vduse/x/../control', None),
                ('vduse/control', folder),
                ('/dev/vduse/control', folder),
            ]:
                os.stat(path, dir_fd=dirfd)
                os.close(os.open(path, os.O_RDWR, dir_fd=dirfd))
            """
        seen = []

        def handle(call: NodeCall) -> None:
            seen.append((call.kind, call.path))
            if call.kind == "look":
                call.reply_stat(stat.S_IFCHR | 0o600, 0)
            else:
                running.open(call, len(seen))

        with program(script) as running:
            running.serve(handle)
        kinds = [("look", "/dev/vduse/control"), ("open", "/dev/vduse/control")]
        assert seen == kinds * 6

    def test_the_old_calls_and_openat2_are_known_too(self) -> None:
        script = """
            how = ctypes.create_string_buffer(struct.pack('QQQ', os.O_RDWR, 0, 0))
            path = ctypes.create_string_buffer(b'/dev/vduse/control')
            at = ctypes.addressof
            os.close(syscall(437, -100, at(path), at(how), 24))
            print(failed(syscall, 437, -100, at(path), at(how), 7), 'without its flags')
            print(failed(syscall, 437, -100, at(path), 8, 24), 'flags in no memory')
            if os.uname().machine == 'x86_64':
                buffer = ctypes.create_string_buffer(144)
                os.close(syscall(2, at(path), os.O_RDWR, 0))
                for number in (4, 6):
                    syscall(number, at(path), at(buffer))
                syscall(21, at(path), os.R_OK)
            """
        opened = []

        def handle(call: NodeCall) -> None:
            if call.kind == "look":
                call.reply_stat(stat.S_IFCHR | 0o600, 0)
                return
            opened.append(call.flags)
            running.open(call, len(opened))

        with program(script) as running:
            output = running.serve(handle)
        assert output == "EINVAL without its flags\nEFAULT flags in no memory\n"
        assert set(opened) == {os.O_RDWR}

    def test_existence_checks_see_what_they_are_told(self) -> None:
        script = """
            found = os.stat('/dev/vduse/control')
            print(oct(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev))
            print(found.st_nlink, found.st_uid == os.getuid(), found.st_gid == os.getgid())
            print(oct(os.lstat('/dev/vduse').st_mode))
            print(failed(os.stat, '/dev/vduse/missing'))
            print(os.access('/dev/vduse/control', os.F_OK))
            print(os.access('/dev/vduse/control', os.R_OK | os.W_OK))
            print(os.access('/dev/vduse/control', os.X_OK))
            print(os.access('/dev/vduse/missing', os.F_OK))
            libc.realpath.restype = ctypes.c_char_p
            print(libc.realpath(b'/dev/vduse/../vduse/control', None).decode())
            print(failed(os.readlink, '/dev/vduse/missing'))
            buffer = ctypes.create_string_buffer(256)
            assert libc.statx(-100, b'/dev/vduse/control', 0, 0x7ff, buffer) == 0
            [mode], device = (struct.unpack_from(*at) for at in
                (('=H', buffer, 28), ('=II', buffer, 128)))
            print(oct(mode), *device)
            """
        look = {
            "/dev/vduse": (stat.S_IFDIR | 0o755, 0),
            "/dev/vduse/control": (stat.S_IFCHR | 0o600, os.makedev(300, 7)),
        }

        def handle(call: NodeCall) -> None:
            assert call.kind == "look"
            if call.path in look:
                call.reply_stat(*look[call.path])
            else:
                call.reply(-errno.ENOENT)

        with program(script) as running:
            output = running.serve(handle)
        assert output.splitlines() == [
            *("0o20600 300 7", "1 True True", "0o40755", "ENOENT"),
            *("True", "True", "False", "False", "/dev/vduse/control", "ENOENT", "0o20600 300 7"),
        ]

    def test_other_paths_go_on_in_the_kernel(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("words")
        script = """
            print(open(sys.argv[1]).read(), os.stat(sys.argv[1]).st_size)
            print(failed(os.open, '/dev/vduse2', os.O_RDWR), failed(os.stat, ''))
            fd = os.open('/dev/null', os.O_RDWR)
            print(failed(ioctl, fd, 0x40048117, b'1234'))
            print(failed(syscall, 257, -100, 8, 0), 'of a path in no memory')
            """
        with program(script, str(tmp_path / "file")) as running:
            output = running.serve(unexpected)
            stats = running.supervised.stats()
        assert output == "words 5\nENOENT ENOENT\nENOTTY\nEFAULT of a path in no memory\n"
        assert stats["passed"] > 5
        assert [stats[kind] for kind in ("opens", "looks", "ioctls", "irqs")] == [0] * 4


class TestIoctls:
    def test_structs_come_and_go(self) -> None:
        script = """
            fd = os.open('/dev/vduse/control', os.O_RDWR)
            print(ioctl(fd, GET_API_VERSION, bytes(8)))
            print(ioctl(fd, SET_API_VERSION, struct.pack('Q', 5)))
            print(ioctl(fd, VQ_GET_INFO, bytes(range(48)))[1] == bytes(48)[::-1])
            print(failed(ioctl, fd, 0x810d))
            """
        seen = []

        def ioctl(call: NodeCall) -> None:
            seen.append((call.key, call.nr, call.payload))
            match call.nr:
                case nr if nr == GET_API_VERSION:
                    call.reply(0, struct.pack("Q", 1))
                case nr if nr == VQ_GET_INFO:
                    call.reply(0, bytes(48))
                case nr if nr == 0x810D:
                    call.reply(-errno.ENOTTY)
                case _:
                    call.reply(7)

        with program(script) as running:
            output = running.serve(opening(running, ioctl))
        assert output.splitlines() == [
            r"(0, b'\x01\x00\x00\x00\x00\x00\x00\x00')",
            r"(7, b'\x05\x00\x00\x00\x00\x00\x00\x00')",
            *("True", "ENOTTY"),
        ]
        assert seen == [
            (1, GET_API_VERSION, b""),
            (1, SET_API_VERSION, struct.pack("Q", 5)),
            (1, VQ_GET_INFO, bytes(range(48))),
            (1, 0x810D, b""),
        ]

    def test_what_follows_a_struct_comes_with_it(self) -> None:
        script = """
            fd = os.open('/dev/vduse/control', os.O_RDWR)
            ioctl(fd, CREATE_DEV, bytes(332) + struct.pack('I', 3) + b'abcd')
            ioctl(fd, CREATE_DEV, bytes(332) + struct.pack('I', 4097) + bytes(4097))
            ioctl(fd, DEV_SET_CONFIG, struct.pack('II', 8, 4) + b'wxyz')
            """
        seen = []

        def ioctl(call: NodeCall) -> None:
            seen.append((call.nr, call.payload))
            call.reply(0)

        with program(script) as running:
            running.serve(opening(running, ioctl))
        assert seen == [
            (CREATE_DEV, bytes(332) + struct.pack("I", 3) + b"abc"),
            (CREATE_DEV, bytes(332) + struct.pack("I", 4097)),
            (DEV_SET_CONFIG, struct.pack("II", 8, 4) + b"wxyz"),
        ]

    def test_an_fd_comes_with_a_struct(self, tmp_path: Path) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            region, entry = ioctl(fd, IOTLB_GET_FD, bytes(32))
            print(os.pread(region, 5, 0), entry[:2], os.get_inheritable(region))
            """

        def ioctl(call: NodeCall) -> None:
            assert call.nr == IOTLB_GET_FD
            with (tmp_path / "region").open("w+b") as region:
                region.write(b"bytes")
                region.flush()
                assert call.reply_fd(region.fileno(), payload=b"ok" + bytes(30), cloexec=False)

        with program(script) as running:
            assert running.serve(opening(running, ioctl)) == "b'bytes' b'ok' True\n"

    def test_dups_and_forks_name_the_same_node_and_threads_call_at_once(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            ioctl(os.dup(fd), SET_API_VERSION, struct.pack('Q', 1))
            os.dup2(fd, 100)
            child = os.fork()
            if child == 0:
                ioctl(100, SET_API_VERSION, struct.pack('Q', 2))
                os._exit(0)
            print(os.waitpid(child, 0)[1])
            thread = threading.Thread(target=ioctl, args=(fd, SET_API_VERSION, struct.pack('Q', 3)))
            thread.start()
            thread.join()
            """
        seen: dict[int, tuple[int, bool, bool]] = {}

        def ioctl(call: NodeCall) -> None:
            own = running.supervised.pid
            seen[struct.unpack("Q", call.payload)[0]] = (
                call.key,
                call.pid == own,
                call.tid == call.pid,
            )
            call.reply(0)

        with program(script) as running:
            assert running.serve(opening(running, ioctl)) == "0\n"
        assert seen == {1: (1, True, True), 2: (1, False, True), 3: (1, True, False)}

    def test_a_node_is_known_until_it_is_removed(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            ioctl(fd, SET_API_VERSION, bytes(8))
            print(failed(ioctl, fd, SET_API_VERSION, bytes(8)))
            """

        def ioctl(call: NodeCall) -> None:
            # The sockets of a pair have inodes of their own.
            inode = os.stat(f"/proc/{call.pid}/fd/{running_fd(call.pid)}").st_ino
            with pytest.raises(FileExistsError):
                running.supervised.add_node(inode, 2, None)
            running.supervised.remove_node(inode)
            running.supervised.remove_node(inode)
            call.reply(0)

        with program(script) as running:
            assert running.serve(opening(running, ioctl)) == "ENOTTY\n"

    def test_hundreds_of_threads_call_at_once(self) -> None:
        script = """
            threading.stack_size(65536)
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            def ask(number):
                for _ in range(3):
                    given = ioctl(fd, VQ_GET_INFO, struct.pack('Q', number) + bytes(40))[1]
                    assert struct.unpack_from('Q', given)[0] == number + 1
            threads = [threading.Thread(target=ask, args=(n,)) for n in range(300)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            """

        def ioctl(call: NodeCall) -> None:
            number = struct.unpack_from("Q", call.payload)[0]
            call.reply(0, struct.pack("Q", number + 1) + bytes(40))

        with program(script) as running:
            running.serve(opening(running, ioctl))
            assert running.supervised.stats()["ioctls"] == 900


def running_fd(pid: int) -> int:
    """The one socket that a program has."""
    folder = f"/proc/{pid}/fd"
    [fd] = [
        int(fd) for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}").startswith("socket:")
    ]
    return fd


class TestKickFd:
    SCRIPT = """
        fd = os.open('/dev/vduse/d', os.O_RDWR)
        kick = os.eventfd(2)
        ioctl(fd, VQ_SETUP_KICKFD, struct.pack('Ii', 0, kick))
        print(os.eventfd_read(kick))
        for number in (-5, 1000, 0, fd):
            print(failed(ioctl, fd, VQ_SETUP_KICKFD, struct.pack('Ii', 0, number)))
        """

    def test_it_is_the_callers_own_eventfd(self) -> None:
        def ioctl(call: NodeCall) -> None:
            try:
                kick = call.kick_fd()
            except OSError as error:
                call.reply(-(error.errno or errno.EIO))
                return
            os.eventfd_write(kick, 5)
            os.close(kick)
            call.reply(0)

        with program(self.SCRIPT) as running:
            output = running.serve(opening(running, ioctl))
            assert running.supervised.notices() == []
        assert output.split() == ["7", "EBADF", "EBADF", "EINVAL", "EINVAL"]

    def test_other_calls_have_none(self) -> None:
        script = "ioctl(os.open('/dev/vduse/d', os.O_RDWR), SET_API_VERSION, bytes(8))"

        def ioctl(call: NodeCall) -> None:
            with pytest.raises(OSError, match="Invalid argument"):
                call.kick_fd()
            call.reply(0)

        with program(script) as running:
            running.serve(opening(running, ioctl))


class TestIrqs:
    def test_with_a_gate_they_are_answered_at_once_by_its_rule(self) -> None:
        line = VqLine()
        gate = IrqGate([line])
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            irq = lambda index: failed(ioctl, fd, VQ_INJECT_IRQ, struct.pack('I', index))
            print(irq(0))
            for _ in range(2):
                ioctl(fd, SET_API_VERSION, bytes(8))
                print(irq(0), irq(1), failed(syscall, SYS_ioctl, fd, VQ_INJECT_IRQ, 8))
            """
        script = f"SYS_ioctl = {16 if os.uname().machine == 'x86_64' else 29}\n" + "".join(
            line[12:] + "\n" for line in script.splitlines()
        )
        steps = iter([lambda: gate.set_driver_ok(True), gate.set_broken])

        def ioctl(call: NodeCall) -> None:
            assert call.nr != VQ_INJECT_IRQ
            next(steps)()
            call.reply(0)

        with program(script) as running:
            output = running.serve(opening(running, ioctl, gate))
            assert running.supervised.stats()["irqs"] == 7
        assert output.splitlines() == ["EINVAL", "succeeded EINVAL EFAULT", "EPERM EPERM EPERM"]
        assert line.stats()["irqs"] == 1

    def test_without_a_gate_they_are_calls_like_others(self) -> None:
        script = """
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            print(failed(ioctl, fd, VQ_INJECT_IRQ, struct.pack('I', 3)))
            """

        def ioctl(call: NodeCall) -> None:
            assert (call.nr, call.payload) == (VQ_INJECT_IRQ, struct.pack("I", 3))
            call.reply(-errno.EINVAL)

        with program(script) as running:
            assert running.serve(opening(running, ioctl)) == "EINVAL\n"


class TestLife:
    def test_a_program_begins_as_at_a_login(self) -> None:
        script = """
            print(os.getpgid(0) == os.getpid(), os.environ.get('HOME'), len(os.environ))
            print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            status = dict(line.split(':', 1) for line in open('/proc/self/status'))
            # 1 << 12: Python itself ignores SIGPIPE and SIGXFSZ.
            print(status['NoNewPrivs'].strip(), status['Seccomp'].strip())
            death = ctypes.c_int()
            libc.prctl(2, ctypes.byref(death))
            print(death.value == signal.SIGKILL)
            """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            with program(script) as running:
                output = running.serve(unexpected)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Python adds LC_CTYPE where there is no locale.
        first, *rest = output.splitlines()
        assert first in ("True None 1", "True None 2")
        assert rest == ["set()", "1 2", "True"]

    def test_signals_that_python_ignores_are_not_ignored(self, tmp_path: Path) -> None:
        status = tmp_path / "status"
        running = Supervised.spawn(
            ["sh", "-c", 'grep SigIgn /proc/self/status > "$1"', "sh", str(status)],
            {"PATH": os.environ["PATH"]},
        )
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1]) == 0
        finally:
            running.close()
        mask = int(status.read_text().split()[1], 16)
        # The C library's own are no signals of Python's: posix_spawn(3), make's, has them ignored.
        ignored = {number for number in signal.valid_signals() if mask >> (number - 1) & 1}
        # What a shell's job in the background was started with, it hands on.
        inherited = {
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) is signal.SIG_IGN
        }
        assert ignored == inherited - {signal.SIGPIPE, signal.SIGXFSZ}

    def test_it_ends_when_the_last_process_has_ended(self) -> None:
        script = """
            if os.fork() > 0:
                os._exit(3)
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            os.read(fd, 100)
            """
        with program(script) as running:
            assert running.wait() == 3
            running.open(running.next())
            assert not running.supervised.ended
            running.ours[1].send(b"end")
            while not running.supervised.ended:
                assert running.calls() == []

    def test_close_kills_the_program_and_frees_its_descendants(self) -> None:
        script = """
            reader, writer = os.pipe()
            fd = os.open('/dev/vduse/d', os.O_RDWR)
            if os.fork() == 0:
                result = failed(ioctl, fd, SET_API_VERSION, bytes(8))
                later = failed(ioctl, fd, SET_API_VERSION, bytes(8))
                os.write(fd, f'{result} {later}'.encode())
                os._exit(0)
            time.sleep(1000)
            """
        with program(script) as running:
            running.open(running.next())
            call = running.next()
            running.supervised.close()
            running.supervised.close()
            assert running.wait() == -signal.SIGKILL
            assert running.ours[1].recv(100) == b"ENODEV ENOSYS"
            assert running.supervised.take() == []
            call.reply(0)
            assert running.supervised.ended

    def test_a_call_is_answered_once(self) -> None:
        script = "print(failed(os.open, '/dev/vduse/d', os.O_RDWR))"
        with program(script) as running:
            call = running.next()
            for wrong in (-4096, 1 << 63):
                with pytest.raises((ValueError, OverflowError)):
                    call.reply(wrong)
            with pytest.raises(ValueError, match="no room"):
                call.reply(0, b"struct")
            with pytest.raises(ValueError, match="does not ask"):
                call.reply_stat(0, 0)
            call.reply(-errno.EACCES)
            with pytest.raises(ValueError, match="answered already"):
                call.reply(0)
            with pytest.raises(ValueError, match="answered already"):
                call.reply_fd(0, cloexec=True)
            assert running.serve(unexpected) == "EACCES\n"

    def test_a_call_that_is_dropped_fails(self) -> None:
        with program("print(failed(os.open, '/dev/vduse/d', os.O_RDWR))") as running:
            running.next()
            assert running.serve(unexpected) == "EIO\n"


class TestSpawn:
    @pytest.mark.parametrize(
        ("argv", "error", "words"),
        [
            (["no-such-program"], errno.ENOENT, 'cannot run "no-such-program"'),
            (["/dev/null"], errno.EACCES, 'cannot run "/dev/null"'),
            (["a\0b"], errno.EINVAL, "a NUL character is in the arguments"),
        ],
    )
    def test_a_program_that_cannot_be_run(self, argv: list[str], error: int, words: str) -> None:
        with pytest.raises(OSError, match=words) as raised:
            Supervised.spawn(argv, {"PATH": os.environ["PATH"]})
        assert raised.value.errno == error

    def test_no_program(self) -> None:
        with pytest.raises(ValueError, match="no program"):
            Supervised.spawn([], {})

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="cannot change to"):
            Supervised.spawn(["true"], {"PATH": os.environ["PATH"]}, cwd=str(tmp_path / "missing"))

    def test_the_folder_it_begins_in(self, tmp_path: Path) -> None:
        running = Supervised.spawn(
            ["sh", "-c", "pwd > here"], {"PATH": os.environ["PATH"]}, cwd=str(tmp_path)
        )
        try:
            assert os.waitpid(running.pid, 0)[1] == 0
        finally:
            running.close()
        assert (tmp_path / "here").read_text() == f"{tmp_path}\n"

    def test_an_fd_that_is_none(self) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            Supervised.spawn(["true"], {"PATH": os.environ["PATH"]}, stdio=(0, 1, 1 << 20))

    def test_below_another_listener_it_is_refused(self) -> None:
        script = f"""
            sys.path[:] = {sys.path!r}
            import vduse._native as native
            try:
                native.Supervised.spawn(['true'], {{'PATH': '/bin:/usr/bin'}})
            except OSError as error:
                print(errno.errorcode[error.errno], error.strerror)
            """
        with program(script) as running:
            output = running.serve(unexpected)
        assert output.startswith("EBUSY there is a seccomp listener above this process already")
