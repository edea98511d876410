"""A seccomp filter (linux/seccomp.h) on the calling process: named system calls fail."""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Mapping

_NUMBERS = {
    "x86_64": {
        "memfd_create": 319,
        "socketpair": 53,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "seccomp": 317,
    },
    "aarch64": {
        "memfd_create": 279,
        "socketpair": 199,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "seccomp": 277,
    },
}
_NUMBERS_EVERYWHERE = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "pidfd_getfd": 438,
}

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2
_LOAD_WORD = 0x20
_JUMP_IF_EQUAL = 0x15
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def refuse(calls: Mapping[str, int]) -> None:
    """The calls fail with these errnos from now on, in this process and its children."""
    numbers = _NUMBERS.get(platform.machine(), {}) | _NUMBERS_EVERYWHERE
    code = [_instruction(_LOAD_WORD, 0, 0, 0)]  # seccomp_data.nr
    for name, number in calls.items():
        code.append(_instruction(_JUMP_IF_EQUAL, 0, 1, numbers[name]))
        code.append(_instruction(_RETURN, 0, 0, _ERRNO | number))
    code.append(_instruction(_RETURN, 0, 0, _ALLOW))
    instructions = ctypes.create_string_buffer(b"".join(code))
    program = _Program(len(code), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)
