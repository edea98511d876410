"""A virtual machine of this machine's root and another kernel, for one command."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import BinaryIO, NoReturn

from tests.kernel.fetch import BedError, Kernel
from tests.kernel.initramfs import initramfs
from tests.means import SYSTEM_DEPS, find_program

_BOOT = Path(__file__).parent / "boot"
#: What the guest's command takes from here besides its PATH.
_PASSED_ON = ("CI", "VIRTUAL_ENV", "LANG")
#: The fd on which a command in the guest may write lines for ``VM.lines``.
RESULTS_FD = 3
#: At most so many boots until the kernel reaches the guest's command.
_BOOTS = 3
#: What a kernel says first of a fault of its own, and how the first alternative begins where the
#: emulation is at fault: CPUs that QEMU (7.2, 10.0) emulates side by side now and then run a
#: breakpoint of the kernel's text patching that another has taken back. Almost all patching is
#: done while the kernel boots. With thread=single it does not happen, and all takes many times as
#: long.
_FAULT = re.compile(r"(?P<emulation>(?:Oops: )?int3: 0000)|Oops: |BUG: |Kernel panic")


@dataclass(frozen=True)
class Machine:
    """What the guest is made of."""

    cpus: int = 2
    memory: int = 2048  # MiB; files that the guest writes lie in it
    options: str = ""  # more of the kernel's command line
    shared: bool = False  # its memory is a memfd, which vhost-user's back ends are given
    qemu: tuple[str, ...] = ()  # more of QEMU's command line


class Stopped(Exception):
    """The guest ended, or was ended, without saying how its command did."""


class Tripped(Stopped):
    """The emulation ended it after its command began: another guest may end well."""


def programs() -> dict[str, str]:
    """Paths of what a VM needs. Raises BedError for what is missing."""
    found = {}
    for name in ("qemu-system-x86_64", "setpriv", "busybox", "modprobe"):
        if (path := find_program(name)) is None:
            raise BedError(f"needs {name}: {SYSTEM_DEPS}")
        found[name] = path
    return found


def command_line(
    qemu: str, kernel: Kernel, machine: Machine, run: Path, output: int, results: int
) -> list[str]:
    """QEMU's command line; ``output`` and ``results`` are sockets, the guest's ports."""
    # What is wrong with the kernel ends the guest, and QEMU does not boot it again.
    options = "console=ttyS0 quiet oops=panic panic=-1 mitigations=off tsc=nowatchdog"
    return [
        *(qemu, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"),
        *("-smp", str(machine.cpus), "-m", str(machine.memory)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel.image), "-initrd", str(run / "initramfs")),
        *("-append", f"{options} vm.run={run} {machine.options}".strip()),
        *("-serial", f"file:{run / 'console'}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=output,fd={output}"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"socket,id=results,fd={results}"),
        *("-device", "virtserialport,chardev=results,name=results"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *(shared_memory(machine) if machine.shared else ()),
        *machine.qemu,
    ]


def shared_memory(machine: Machine) -> tuple[str, ...]:
    """QEMU's words for it."""
    memory = f"memory-backend-memfd,id=memory,size={machine.memory}M,share=on"
    return ("-object", memory, "-machine", "memory-backend=memory")


class VM:
    """A guest that runs one shell command as root and powers off; a context manager.

    The command sees this machine's files; what it writes is the guest's own and is gone with it.
    It runs in ``folder`` (this process's, if None) with this process's PATH, VIRTUAL_ENV and CI.
    ``output`` gets its standard output and error; ours does, if None. ``run`` is the guest's folder
    here while it lives.
    """

    def __init__(
        self,
        kernel: Kernel,
        command: str,
        *,
        machine: Machine = Machine(),
        output: BinaryIO | None = None,
        folder: Path | None = None,
    ) -> None:
        paths = programs()
        #: Seconds of the guest's clock when the command began; None before.
        self.boot_time: float | None = None
        #: Exit status of the command; None until it ended.
        self.status: int | None = None
        self.run = Path(mkdtemp(prefix="vduse-vm-"))
        self._sink = output or sys.stdout.buffer
        self._qemu, self._kernel, self._machine = paths["qemu-system-x86_64"], kernel, machine
        self._boots = 0
        try:
            self._write_run(command, folder or Path.cwd(), Path(paths["busybox"]))
            self._start()
        except BaseException:
            shutil.rmtree(self.run)
            raise

    def _start(self) -> None:
        self._boots += 1
        self._pending = b""
        # QEMU may not come to it, and what the boot before has said is not this one's.
        (self.run / "console").write_bytes(b"")
        self._output, output = socket.socketpair()
        self._results, results = socket.socketpair()
        fds = (output.fileno(), results.fileno())
        with output, results, (self.run / "errors").open("w") as errors:
            line = command_line(self._qemu, self._kernel, self._machine, self.run, *fds)
            self._process = subprocess.Popen(
                # With nobody at its ports the guest would wait for ever.
                ["setpriv", "--pdeathsig=KILL", *line],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=fds,
            )

    def _write_run(self, command: str, folder: Path, busybox: Path) -> None:
        modules = self._kernel.modules
        shutil.copy(_BOOT / "root", self.run)
        exports = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        exports["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        settings = [f"modules={shlex.quote(str(modules))}"]
        settings += [f"folder={shlex.quote(str(folder))}"]
        settings += [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
        (self.run / "settings").write_text("\n".join(settings) + "\n")
        (self.run / "command").write_text(command + "\n")
        (self.run / "initramfs").write_bytes(initramfs(modules, busybox))

    def lines(self, timeout: float) -> Iterator[str]:
        """What the command writes to ``RESULTS_FD``, line by line, until it ends.

        Raises:
            Stopped: the guest went away before that, or a line took longer than ``timeout``
                seconds, boots included (the guest is ended). Tripped: see there.
        """
        return self._until_exit(lambda: time.monotonic() + timeout)

    def wait(self, timeout: float) -> int:
        """The command's exit status. Raises Stopped as ``lines`` does, ``timeout`` for all."""
        end = time.monotonic() + timeout
        for _ in self._until_exit(lambda: end):
            pass
        assert self.status is not None
        return self.status

    def console(self, lines: int = 60) -> str:
        """The last lines of the guest's console and of QEMU's errors."""
        console = (self.run / "console").read_text(errors="replace")
        errors = (self.run / "errors").read_text(errors="replace")
        return "\n".join([*console.splitlines()[-lines:], *errors.splitlines()])

    def _until_exit(self, deadline: Callable[[], float]) -> Iterator[str]:
        while self.status is None:
            line = self._line(deadline())
            word, _, rest = line.partition(" ")
            if word == "booted":
                self.boot_time = float(rest)
            elif word == "exit":
                self.status = int(rest)
                self._drain_output()
            else:
                yield line

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._pending:
            left = max(0.0, deadline - time.monotonic())
            ports = [port for port in (self._output, self._results) if port.fileno() >= 0]
            ready, _, _ = select.select(ports, [], [], left)
            if not ready:
                self._stop("was out of time and was ended")
            if self._output in ready:
                self._copy_output()
            if self._results in ready:
                more = self._results.recv(1 << 16)
                if more:
                    self._pending += more
                elif not self._has_tripped():
                    self._stop("ended early")
                elif self.boot_time is not None:
                    self._stop("ended early, by the emulation's fault", Tripped)
                elif self._boots == _BOOTS:
                    self._stop(f"ended early, by the emulation's fault, {_BOOTS} times")
                else:
                    self._boot_again()
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    def _has_tripped(self) -> bool:
        fault = _FAULT.search((self.run / "console").read_text(errors="replace"))
        return fault is not None and fault["emulation"] is not None

    def _boot_again(self) -> None:
        """Nothing of ours has run yet."""
        print("the emulation has ended the guest: it boots again", file=sys.stderr)
        self._disconnect()
        self._start()

    def _drain_output(self) -> None:
        """All the command's output came before its exit status; some may not be read yet."""
        with suppress(BlockingIOError):
            while self._output.fileno() >= 0:
                self._output.setblocking(False)
                self._copy_output()

    def _copy_output(self) -> None:
        data = self._output.recv(1 << 16)
        if not data:
            self._output.close()
        self._sink.write(data)
        self._sink.flush()

    def _stop(self, why: str, kind: type[Stopped] = Stopped) -> NoReturn:
        self._end()
        raise kind(f"the guest {why}; its console:\n{self.console()}")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends the guest, if it still runs, and removes its folder."""
        self._disconnect()
        shutil.rmtree(self.run)

    def _disconnect(self) -> None:
        self._end()
        self._results.close()
        self._output.close()

    def __enter__(self) -> VM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
