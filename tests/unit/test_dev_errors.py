"""What the kernel's refusals become: one line that says what to do."""

from __future__ import annotations

import errno

import pytest

from vduse.daemon.dev import errors as module
from vduse.daemon.dev.errors import KernelRefused, Step, explain, explained
from vduse.vdpa.users import Program


@pytest.mark.parametrize(
    ("step", "code", "text", "line"),
    [
        (
            "add",
            errno.EPERM,
            "Operation not permitted",
            "d: putting it on the vDPA bus takes CAP_NET_ADMIN: run it as root",
        ),
        (
            "add",
            errno.EEXIST,
            "File exists",
            "d: it is on the vDPA bus already: vduse dev show d",
        ),
        (
            "bind",
            errno.ENOENT,
            "vDPA bus driver vhost_vdpa: not there: modprobe vhost_vdpa",
            "d: vDPA bus driver vhost_vdpa: not there: modprobe vhost_vdpa",
        ),
        (
            "serve",
            errno.EPERM,
            "device d is broken for good",
            "d: the kernel has given the device up for good, because its program did not answer in "
            "time; remove it and start again: vduse dev del d",
        ),
        (
            "serve",
            errno.EACCES,
            "/dev/vduse/d: Permission denied: run as root",
            "/dev/vduse/d: Permission denied: run as root",
        ),
        (
            "reach",
            errno.ENOENT,
            "/dev/vduse/control: No such file: modprobe vduse",
            "/dev/vduse/control: No such file: modprobe vduse",
        ),
        # One that nobody has thought of.
        ("del", errno.EDOM, "Numerical argument out of domain", "d: Numerical argument out of d"),
    ],
)
def test_line_of_a_refusal(step: Step, code: int, text: str, line: str) -> None:
    with pytest.raises(KernelRefused) as refused, explained(step, "d"):
        raise OSError(code, text)
    assert str(refused.value).startswith(line)


def test_name_in_use_names_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = OSError(errno.EBUSY, "Device or resource busy")
    monkeypatch.setattr(module, "programs", lambda _node: [Program(7, "vduse", stopped=False)])
    line = "d: vduse (pid 7) serves a device of this name: stop it, or take another --name"
    assert str(explain(busy, "serve", "d")) == line
    monkeypatch.setattr(module, "programs", lambda _node: [])
    assert str(explain(busy, "serve", "d")) == line.replace("vduse (pid 7)", "another program")
