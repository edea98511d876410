"""What is refused before a program is started, and what the person is told."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from vduse.run import checks
from vduse.run.checks import check_host, check_program
from vduse.run.errors import ProgramError


def program(path: Path, contents: bytes = b"#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.write_bytes(contents)
    path.chmod(mode)
    return path


def refusal(name: str | Path, path: str = "") -> str:
    with pytest.raises(ProgramError) as caught:
        check_program(str(name), {"PATH": path})
    return str(caught.value)


def test_found_on_path_or_by_its_path(tmp_path: Path) -> None:
    made = program(tmp_path / "daemon")
    assert check_program("daemon", {"PATH": f"/nowhere:{tmp_path}"}) == str(made)
    assert check_program(str(made), {}) == str(made)
    assert check_program(sys.executable, {}) == sys.executable


def test_no_such_program(tmp_path: Path) -> None:
    assert refusal("").startswith("the program's name is empty")
    assert "no such program on PATH" in refusal("daemon", str(tmp_path))
    assert "check the path" in refusal(tmp_path / "daemon")
    assert "is a folder" in refusal(f"{tmp_path}/.")
    assert "chmod +x" in refusal(program(tmp_path / "plain", mode=0o644))


def test_program_in_sbin_is_pointed_to() -> None:
    there = next(name for name in sorted(os.listdir("/usr/sbin")) if "." not in name)
    assert f"sbin/{there} is there: name that" in refusal(there)


def test_setuid_and_setgid_programs_are_refused(tmp_path: Path) -> None:
    assert "is setuid" in refusal(program(tmp_path / "suid", mode=0o4755))
    assert "is setgid" in refusal(program(tmp_path / "sgid", mode=0o2755))


def test_file_capabilities_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "capable")
    asked: list[object] = []

    def getxattr(at: str, name: str) -> bytes:
        asked.append((at, name))
        return b"\1\0\0\2"

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert "has file capabilities" in refusal(path)
    assert asked == [(str(path), "security.capability")]


def test_program_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "hidden")
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: mode != os.R_OK and access(at, mode))
    assert "may be run but not read" in refusal(path)


def test_32_bit_programs_are_refused_and_scripts_for_them(tmp_path: Path) -> None:
    elf = program(tmp_path / "elf", b"\x7fELF" + struct.pack("<BBB", 1, 1, 1) + bytes(45))
    assert "is a 32-bit program" in refusal(elf)
    script = program(tmp_path / "script", f"#! {elf} -x\n".encode())
    assert f"{elf}: is a 32-bit program" in refusal(script)


def test_old_kernels_are_refused() -> None:
    check_host("5.19.0")
    check_host("6.12.48+deb13-amd64")
    for release in ("5.18.19", "4.19.0-27-amd64"):
        with pytest.raises(ProgramError, match=r"is too old: 5\.19 or newer"):
            check_host(release)


@pytest.mark.parametrize(("scope", "refused"), [("0", False), ("1", False), ("2", True)])
def test_yama(scope: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yama = tmp_path / "ptrace_scope"
    yama.write_text(scope + "\n")
    monkeypatch.setattr(checks, "has_capability", lambda *_: False)
    if not refused:
        check_host(yama=str(yama))
        return
    with pytest.raises(ProgramError, match=r"sysctl kernel\.yama\.ptrace_scope=1"):
        check_host(yama=str(yama))
    monkeypatch.setattr(checks, "has_capability", lambda *_: True)
    check_host(yama=str(yama))
