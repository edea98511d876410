"""A container's view of a disk: its /dev/vdX and nothing else of the bus.

What isolates it: bubblewrap, started by an ordinary user, makes user, mount, PID, network, IPC,
UTS and cgroup namespaces of its own; its root is that user outside, its /dev holds what it was
given. A device cgroup lets it open these nodes alone, whatever gets into its /dev. The file system
in the disk is fuse2fs's: the kernel's own ext4 does not mount in a user namespace.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, on_the_bus, run
from tests.kernel.guest.device_cgroup import device_cgroup
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice

#: nobody: root of the container, outside.
USER = 65534
#: What bubblewrap's --dev puts into /dev; and what its own file system needs.
ORDINARY = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")]
FUSE = "/dev/fuse"

INSIDE = """
set -eu
id -u
ls /dev
echo --
! head -c 1 /dev/other 2>/tmp/refused
cat /tmp/refused
mke2fs -qt ext4 /dev/given
mkdir /tmp/mnt

mount_given() {
    fuse2fs -f /dev/given /tmp/mnt 2>/tmp/fuse2fs &
    until mountpoint -q /tmp/mnt; do kill -0 $! || { cat /tmp/fuse2fs; exit 1; }; sleep 0.05; done
}
leave() {
    umount /tmp/mnt
    wait
    e2fsck -fn /dev/given >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck; exit 1; }
}
mount_given
for name in a b c; do head -c 1000000 /dev/urandom >/tmp/mnt/$name; done
(cd /tmp/mnt && sha256sum a b c >/tmp/sums)
leave
mount_given
(cd /tmp/mnt && sha256sum --quiet -c /tmp/sums)
leave
cat /tmp/sums
"""


@pytest.fixture(scope="module", autouse=True)
def fuse(modules: None) -> None:
    subprocess.run(["modprobe", "-q", "fuse"])  # built in, or a module


def as_user() -> list[str]:
    """The beginning of a command line: the container's user, no groups."""
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


def in_container(group: Path, given: str, other: str) -> str:
    """Runs ``INSIDE``; what it printed."""
    argv = [*as_user(), "bwrap", "--unshare-all", "--die-with-parent", "--uid", "0", "--gid", "0"]
    argv += ["--cap-add", "CAP_SYS_ADMIN", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    for folder in ("/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64"):
        argv += ["--ro-bind-try", folder, folder]
    argv += ["--dev-bind", FUSE, FUSE, "--dev-bind", given, "/dev/given"]
    # As by mistake: nobody gave it this one.
    argv += ["--dev-bind", other, "/dev/other", "sh", "-c", INSIDE]
    done = subprocess.run(
        argv,
        preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("bwrap", "fuse2fs", "mke2fs", "e2fsck", "debugfs")
def test_unprivileged_container_makes_a_file_system_on_its_disk(tmp_path: Path) -> None:
    control = KernelControl()
    backends = [_native.Backend.memory(32 * MIB) for _ in range(2)]
    with (
        on_the_bus(BlkDevice("disk0", backends[0]), control) as given,
        on_the_bus(BlkDevice("disk1", backends[1]), control) as other,
    ):
        os.chown(given, USER, USER)
        os.chmod(other, 0o666)
        os.chmod(FUSE, 0o666)
        # It is not the permissions that keep it out.
        run(*as_user(), "head", "-c", "1", other)
        with device_cgroup("container", given, FUSE, *ORDINARY) as group:
            lines = in_container(group, given, other).splitlines()
        uid, *entries = lines[: lines.index("--")]
        assert uid == "0"
        assert {"given", "other"} < set(entries)
        assert not [name for name in entries if name.startswith(("vd", "vhost"))]
        refused = [line for line in lines if "Operation not permitted" in line]
        assert len(refused) == 1 and "/dev/other" in refused[0]
        run("e2fsck", "-fn", given)
        for line in lines[-3:]:
            checksum, name = line.split()
            run("debugfs", "-R", f"dump {name} {tmp_path / name}", given)
            assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == checksum
    control.close()
    for backend in backends:
        backend.close()
