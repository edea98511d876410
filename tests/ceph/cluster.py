"""A cluster of one monitor and one OSD, with cephx; and what tests do to it."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import time
import uuid
from pathlib import Path

from tests.means import SYSTEM_PYTHON, find_program
from vduse.testing.closing import Closing

#: The pool that every cluster has.
POOL = "rbd"
#: Bytes of the OSD's store, a sparse file.
_STORE = 4 << 30

_CONF = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v2:127.0.0.1:{port}]
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.$pid.asok
log_file = {folder}/$name.log
crash_dir = {folder}/crash
mon_data = {folder}/$name
osd_data = {folder}/$name
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_allow_pool_size_one = true
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = {store}
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_memory_target = 939524096
[mon.a]
mon_addr = v2:127.0.0.1:{port}
"""

#: Waits for the OSD, of which nothing tells, and makes the pool, in one process: Debian's Python
#: module is for Debian's interpreter alone.
_MAKE_POOL = """
import json, sys, time
import rados, rbd
conf, pool = sys.argv[1:]
cluster = rados.Rados(conffile=conf, name="client.admin")
cluster.connect(timeout=60)
def mon(**command):
    code, out, why = cluster.mon_command(json.dumps({**command, "format": "json"}), b"")
    if code:
        raise SystemExit(f"{command}: {code} {why}")
    return json.loads(out) if out.strip() else None
while mon(prefix="osd stat")["num_up_osds"] < 1:
    time.sleep(0.05)
mon(prefix="osd pool create", pool=pool)
cluster.wait_for_latest_osdmap()
mon(prefix="osd pool application enable", pool=pool, app="rbd")
with cluster.open_ioctx(pool) as context:
    rbd.RBD().pool_init(context, True)
cluster.shutdown()
"""


class ClusterError(Exception):
    """A program of Ceph's failed; its words."""


def new_key() -> str:
    """A cephx secret: type 1 (AES), time of creation, length, 16 random bytes; in base64."""
    header = struct.pack("<hiih", 1, int(time.time()), 0, 16)
    return base64.b64encode(header + os.urandom(16)).decode()


class Cluster(Closing):
    """Runs in ``folder``, which must be empty, until :meth:`close`. ClusterError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "ceph.conf"
        self._mon: subprocess.Popen[bytes] | None = None
        self._osd: subprocess.Popen[bytes] | None = None
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, input: str | None = None) -> str:
        """What a program prints; it uses this cluster."""
        program = find_program(command[0])
        assert program is not None, f"{command[0]} is missing"
        done = subprocess.run(
            [program, *command[1:]],
            env=os.environ | {"CEPH_CONF": str(self.conf)},
            input=input,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def rbd(self, *arguments: str) -> str:
        """Ceph's own tool for images, as client.admin."""
        return self.run("rbd", *arguments)

    def image(self, name: str, size: str = "64M") -> str:
        """Makes an image; the spelling that opens it."""
        self.rbd("create", f"{POOL}/{name}", "--size", size)
        return self.spec(name)

    def spec(self, name: str, **keys: str) -> str:
        """The spelling of an image, with these keys (``_`` for ``-``)."""
        options = {"conf": str(self.conf)} | {k.replace("_", "-"): v for k, v in keys.items()}
        return f"rbd:{POOL}/{name}" + "".join(f",{k}={v}" for k, v in options.items())

    def user(self, id: str) -> str:
        """Makes a user for images of the pool; the secret."""
        caps = ["mon", "profile rbd", "osd", f"profile rbd pool={POOL}"]
        self.run("ceph", "auth", "get-or-create", f"client.{id}", *caps)
        return self.run("ceph", "auth", "get-key", f"client.{id}").strip()

    def ports(self) -> list[int]:
        """That its clients connect to, on loopback; those of the OSD while it lives."""
        [osd] = json.loads(self.run("ceph", "osd", "dump", "--format", "json"))["osds"]
        addresses = [each["addr"] for each in osd["public_addrs"]["addrvec"]]
        return [self._port, *(int(address.rpartition(":")[2]) for address in addresses)]

    # --- troubles ---------------------------------------------------------------------------

    def pause_osd(self) -> None:
        """The OSD answers nothing, its connections stay."""
        assert self._osd is not None
        self._osd.send_signal(signal.SIGSTOP)

    def resume_osd(self) -> None:
        """It goes on."""
        assert self._osd is not None
        self._osd.send_signal(signal.SIGCONT)

    def kill_osd(self) -> None:
        """SIGKILL, and gone."""
        assert self._osd is not None
        self._osd.kill()
        self._osd.wait()

    def start_osd(self) -> None:
        """Starts the OSD, or starts it again; it serves some time later."""
        keyring = str(self.folder / "osd.0" / "keyring")
        self._osd = self._daemon("ceph-osd", "-i", "0", "--keyring", keyring)

    def close(self) -> None:
        """Ends its daemons; the folder stays."""
        for daemon in (self._osd, self._mon):
            if daemon is not None:
                daemon.kill()
                daemon.wait()

    # --- from nothing -----------------------------------------------------------------------

    def _daemon(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        path = find_program(program)
        assert path is not None, f"{program} is missing"
        with (self.folder / f"{program}.out").open("ab") as output:
            return subprocess.Popen(
                [path, "-f", "-c", str(self.conf), *arguments], stdout=output, stderr=output
            )

    def _make(self) -> None:
        folder, fsid = self.folder, str(uuid.uuid4())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = self._port = free.getsockname()[1]
        self.conf.write_text(_CONF.format(fsid=fsid, port=port, folder=folder, store=_STORE))
        for name in ("mon.a", "osd.0", "crash"):
            (folder / name).mkdir()
        (folder / "keyring").write_text(
            "".join(
                f"[{name}]\n\tkey = {new_key()}\n"
                + "".join(f'\tcaps {kind} = "allow *"\n' for kind in ("mon", "osd", "mgr"))
                for name in ("mon.", "client.admin")
            )
        )
        monmap = str(folder / "monmap")
        address = f"[v2:127.0.0.1:{port}]"
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        keyring = str(folder / "keyring")
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._mon = self._daemon("ceph-mon", "-i", "a")
        osd_uuid, osd_key = str(uuid.uuid4()), new_key()
        (folder / "osd.0" / "keyring").write_text(f"[osd.0]\n\tkey = {osd_key}\n")
        secret = json.dumps({"cephx_secret": osd_key})
        self.run("ceph", "osd", "new", osd_uuid, "-i", "-", input=secret)
        keyring = str(folder / "osd.0" / "keyring")
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid, "--keyring", keyring)
        self.start_osd()
        self.run(SYSTEM_PYTHON, "-c", _MAKE_POOL, str(self.conf), POOL)
