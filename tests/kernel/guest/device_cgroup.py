"""A cgroup whose processes may open some device nodes and no others: the device controller of
cgroup v2 is a BPF program (linux/bpf.h: BPF_PROG_TYPE_CGROUP_DEVICE), as container managers load
one for each container."""

from __future__ import annotations

import ctypes
import os
import select
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_BPF = 321  # the system call, on x86_64
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE_HOOK = 15, 6
_BLOCK, _CHAR, _MKNOD = 1, 2, 1

# Instructions (opcodes of linux/bpf.h); registers: 1 is the context, 0 the answer.
_ANSWER, _TYPE, _ACCESS, _MAJOR, _MINOR = 0, 2, 3, 4, 5


def _insn(code: int, dst: int = 0, src: int = 0, jump: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, jump, value)


def _load_word(dst: int, offset: int) -> bytes:
    return _insn(0x61, dst, 1, offset)


def _answer(allowed: int) -> bytes:
    return _insn(0xB7, _ANSWER, value=allowed) + _insn(0x95)


def _program(nodes: list[os.stat_result]) -> bytes:
    """struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor. mknod is for nobody."""
    code = _load_word(_TYPE, 0) + _load_word(_ACCESS, 0)
    code += _insn(0x57, _TYPE, value=0xFFFF) + _insn(0x77, _ACCESS, value=16)
    code += _load_word(_MAJOR, 4) + _load_word(_MINOR, 8)
    code += _insn(0x45, _ACCESS, jump=5 * len(nodes), value=_MKNOD)
    for node in nodes:
        kind = _BLOCK if stat.S_ISBLK(node.st_mode) else _CHAR
        code += _insn(0x55, _TYPE, jump=4, value=kind)
        code += _insn(0x55, _MAJOR, jump=3, value=os.major(node.st_rdev))
        code += _insn(0x55, _MINOR, jump=2, value=os.minor(node.st_rdev))
        code += _answer(1)
    return code + _answer(0)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.create_string_buffer(attributes, 128)
    result: int = libc.syscall(
        ctypes.c_long(_BPF), ctypes.c_int(command), argument, ctypes.c_uint(128)
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf({command}): {os.strerror(error)}")
    return result


@contextmanager
def device_cgroup(name: str, *nodes: str) -> Iterator[Path]:
    """The cgroup's folder: who is written into its cgroup.procs may open ``nodes`` alone."""
    code = _program([os.stat(node) for node in nodes])
    instructions = ctypes.create_string_buffer(code)
    licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQ",
        _CGROUP_DEVICE_PROGRAM,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
    )
    group = _CGROUPS / name
    group.mkdir()
    program = _bpf(_PROG_LOAD, load)
    folder = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _bpf(_PROG_ATTACH, struct.pack("=III", folder, program, _CGROUP_DEVICE_HOOK))
        yield group
    finally:
        os.close(program)
        os.close(folder)
        _wait_until_empty(group)
        group.rmdir()


def _wait_until_empty(group: Path) -> None:
    """What a container leaves behind is killed with its process 1, but ends later."""
    with open(group / "cgroup.events") as events:
        changes = select.poll()
        changes.register(events, select.POLLPRI)
        while "populated 1" in events.read():
            assert changes.poll(60_000), (group / "cgroup.procs").read_text()
            events.seek(0)
