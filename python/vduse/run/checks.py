"""What can be known before a program is started: whether it can be run under a supervisor."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from vduse.framework.credentials import has_capability
from vduse.run.errors import ProgramError

#: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: without it a call that a signal interrupts takes effect
#: and still fails.
FIRST_KERNEL = (5, 19)
#: linux/capability.h
_CAP_SYS_PTRACE = 19
#: kernel.yama.ptrace_scope from which on a parent may not read its child's memory.
_ADMIN_ONLY = 2
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"
_CAPABILITIES = "security.capability"

#: Where an ordinary user's PATH does not lead.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

_ELF = b"\x7fELF"
_ELF_32 = 1
#: Bytes of the first line of a script that the kernel looks at (BINPRM_BUF_SIZE).
_HEAD = 256


def check_host(release: str | None = None, yama: str = _YAMA) -> None:
    """ProgramError: no program can be supervised here. ``release``: of the kernel, else this
    one's."""
    release = os.uname().release if release is None else release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is not None and (int(found[1]), int(found[2])) < FIRST_KERNEL:
        needed = ".".join(map(str, FIRST_KERNEL))
        raise ProgramError(
            f"Linux {release} is too old: {needed} or newer answers other programs' system calls"
        )
    try:
        scope = int(Path(yama).read_text())
    except (OSError, ValueError):
        return
    if scope >= _ADMIN_ONLY and not has_capability(os.getpid(), _CAP_SYS_PTRACE):
        raise ProgramError(
            f"kernel.yama.ptrace_scope is {scope}: nobody but root reads a program's ioctls: as "
            "root: sysctl kernel.yama.ptrace_scope=1"
        )


def check_program(name: str, env: Mapping[str, str]) -> str:
    """Where a program is, by its name and ``PATH`` as execvp(3) does. ProgramError: there is none,
    or none that can be run."""
    path = _find(name, env.get("PATH", os.defpath))
    _check_rights(path)
    interpreter = _check_format(path)
    if interpreter is not None and os.path.exists(interpreter):
        _check_rights(interpreter)
        _check_format(interpreter)
    return path


def _find(name: str, search: str) -> str:
    if not name:
        raise ProgramError("the program's name is empty: name one, with its arguments, behind --")
    if "/" not in name:
        if (found := shutil.which(name, path=search)) is not None:
            return found
        if (elsewhere := shutil.which(name, path=_SBIN)) is not None:
            raise ProgramError(f"{name}: not on PATH, but {elsewhere} is there: name that")
        raise ProgramError(f"{name}: no such program on PATH: install it, or name its path")
    if not os.path.exists(name):
        raise ProgramError(f"{name}: no such program: check the path")
    if os.path.isdir(name):
        raise ProgramError(f"{name}: is a folder: name a program")
    if not os.access(name, os.X_OK):
        raise ProgramError(f"{name}: is not executable: chmod +x, or name its interpreter first")
    return name


def _check_rights(path: str) -> None:
    mode = os.stat(path).st_mode
    help_ = "run a copy of your own without that (cp)"
    if mode & stat.S_ISUID:
        raise ProgramError(f"{path}: is setuid, and would not get its owner's rights: {help_}")
    if mode & stat.S_ISGID and mode & stat.S_IXGRP:
        raise ProgramError(f"{path}: is setgid, and would not get its group's rights: {help_}")
    try:
        os.getxattr(path, _CAPABILITIES)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            raise ProgramError(f"{path}: {error.strerror}") from None
    else:
        raise ProgramError(f"{path}: has file capabilities, and would not get them: {help_}")
    if not os.access(path, os.R_OK):
        raise ProgramError(
            f"{path}: may be run but not read, so the kernel hides its memory: chmod +r, or "
            "run a copy that is yours"
        )


def _check_format(path: str) -> str | None:
    """The interpreter of a script. ProgramError: a program of 32 bits."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(_ELF) and head[4:5] == bytes([_ELF_32]):
        raise ProgramError(
            f"{path}: is a 32-bit program: its calls are not those of linux/vduse.h on this "
            "kernel: build it for 64 bits"
        )
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split()
        return os.fsdecode(words[0]) if words else None
    return None
