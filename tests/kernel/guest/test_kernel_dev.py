"""`vduse dev` on the kernel's bus."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, on_the_bus, run, set_msg_timeout
from tests.kernel.guest.command import NOTHING, blk, left, refusal, refusal_of_user, vduse
from tests.kernel.guest.ordinary import NOBODY
from tests.waiting import PATIENCE, eventually
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.vdpa.users import requests_in_flight

#: Seconds; programs begin slowly on an emulated machine.
pytestmark = [pytest.mark.usefixtures("modules"), pytest.mark.timeout(300)]


@pytest.fixture
def control() -> Iterator[KernelControl]:
    port = KernelControl()
    yield port
    port.close()
    assert left() == NOTHING


@pytest.fixture
def device(control: KernelControl) -> Iterator[BlkDevice]:
    """Served, not on the bus."""
    backend = _native.Backend.memory(16 * MIB)
    device = BlkDevice("disk0", backend, queues=2, queue_size=64)
    device.start(control)
    yield device
    device.close(destroy=True)
    backend.close()


def test_a_devices_way_over_the_bus(device: BlkDevice) -> None:
    listing = vduse("dev", "list")
    [created] = listing["devices"]
    assert (created["name"], created["on_bus"]) == ("disk0", False)
    [management] = [found for found in listing["management"] if found["name"] == "vduse"]
    assert {"net", "block"} <= set(management["types"])

    added = vduse("dev", "add", "disk0")["device"]
    expected = {"on_bus": True, "type": "block", "management": "vduse", "driver": "virtio_vdpa"}
    assert expected.items() <= added.items()
    assert (added["max_vqs"], added["max_vq_size"]) == (2, 64)
    assert vduse("dev", "list")["devices"] == [added]
    assert "already: vduse dev show disk0" in refusal("dev", "add", "disk0")

    [shown] = vduse("dev", "show")["devices"]
    assert shown["device"] == added
    assert shown["config"]["blk_cfg_capacity"] == 16 * MIB // 512
    assert {"VERSION_1", "ACCESS_PLATFORM", "MQ"} <= set(shown["features"]) <= set(shown["offered"])
    assert shown["program"].endswith(f"(pid {os.getpid()})")
    assert shown["statistics"] == []
    assert shown["no_statistics"].startswith("the kernel counts none of VDUSE's")

    unbound = vduse("dev", "unbind", "disk0")["device"]
    assert (unbound["driver"], unbound["node"], os.path.exists(added["node"])) == (
        None,
        None,
        False,
    )
    bound = vduse("dev", "bind", "disk0", "vhost_vdpa")["device"]
    assert (bound["driver"], bound["node"]) == ("vhost_vdpa", "/dev/vhost-vdpa-0")
    assert vduse("dev", "del", "disk0")["device"]["on_bus"] is False
    assert vduse("dev", "add", "disk0", "--driver", "vhost_vdpa")["device"] == bound
    assert vduse("dev", "del", "disk0")["device"]["on_bus"] is False
    # Its program goes on: the device stays.
    assert left() == ([], ["disk0"])


def test_what_is_refused_says_what_to_do(device: BlkDevice) -> None:
    assert "a program serves it first: vduse blk IMAGE --name d" in refusal("dev", "add", "d")
    assert refusal("dev", "del", "d") == "d: not on the vDPA bus; vduse dev list shows what is"
    assert "vduse dev list shows what is" in refusal("dev", "show", "d")
    assert "vduse dev list shows what is" in refusal("dev", "bind", "d", "vhost_vdpa")
    assert "no such management device" in refusal("dev", "add", "disk0", "--management", "x")
    assert "leave out --features" in refusal("dev", "add", "disk0", "--mtu", "1500")
    assert "it goes when that ends" in refusal("dev", "del", "disk0")


def test_an_ordinary_user_looks_and_changes_nothing(device: BlkDevice) -> None:
    assert "takes CAP_NET_ADMIN: run it as root" in refusal_of_user(NOBODY, "dev", "add", "disk0")
    vduse("dev", "add", "disk0")
    assert "takes CAP_NET_ADMIN: run it as root" in refusal_of_user(NOBODY, "dev", "del", "disk0")
    text = refusal_of_user(NOBODY, "dev", "bind", "disk0", "vhost_vdpa")
    assert text == "disk0: changing a driver takes root: run it as root"
    assert vduse("dev", "list")["devices"][0]["driver"] == "virtio_vdpa"
    vduse("dev", "del", "disk0")


@pytest.mark.needs("mke2fs", "mount", "umount")
def test_mounted_disk_is_taken_away_by_force_only(device: BlkDevice, tmp_path: Path) -> None:
    node = vduse("dev", "add", "disk0")["device"]["node"]
    run("mke2fs", "-qt", "ext4", node)
    run("mount", node, str(tmp_path))
    for argv in (["del"], ["unbind"], ["bind", "vhost_vdpa"]):
        text = refusal("dev", argv[0], "disk0", *argv[1:])
        assert text.startswith(f"{node} is mounted at {tmp_path}: let go of it first (umount)")
    assert vduse("dev", "del", "disk0", "--force")["device"]["on_bus"] is False
    run("umount", str(tmp_path))


def test_disk_that_is_open_names_who_has_it(control: KernelControl) -> None:
    backend = _native.Backend.memory(16 * MIB)
    with on_the_bus(BlkDevice("disk0", backend), control) as node:
        with open(node, "rb"):
            text = refusal("dev", "unbind", "disk0")
        assert text.startswith(f"{node} is open in ")
        assert f"(pid {os.getpid()})" in text
    backend.close()


def test_silent_program_is_named_with_the_way_back(control: KernelControl) -> None:
    with blk("memory", "--size", "16M", "--via", "kernel") as (child, facts):
        pid = child.process.pid
        child.signal(signal.SIGSTOP)
        # A request that it does not answer: the kernel would wait for that before it asks anything.
        with subprocess.Popen(
            ["dd", f"if={facts['node']}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct"],
            stderr=subprocess.DEVNULL,
        ) as reader:
            eventually(lambda: requests_in_flight(facts["node"]), "a request in flight")
            text = refusal("dev", "del", "disk0", "--force")
            assert "1 requests of" in text
            assert f"(pid {pid}), is stopped (kill -CONT {pid})" in text
            child.signal(signal.SIGCONT)
            assert reader.wait(PATIENCE) == 0
        child.signal(signal.SIGSTOP)
        set_msg_timeout("disk0", 1)
        done = vduse("dev", "del", "disk0")
        assert done["device"]["on_bus"] is False
        [note] = done["notes"]
        assert note.startswith("the kernel waited 1 s for disk0 (its msg_timeout) and has given it")
        assert f"(pid {pid}), is stopped (kill -CONT {pid})" in note
        assert f"end it (kill -9 {pid}), then vduse dev del disk0, and start it again" in note
        child.signal(signal.SIGKILL)
        child.process.wait()
        # The way back that it names.
        assert left() == ([], ["disk0"])
        vduse("dev", "del", "disk0")


def test_program_that_has_gone_is_not_waited_for(control: KernelControl) -> None:
    with blk("memory", "--size", "16M", "--via", "kernel") as (child, _):
        child.signal(signal.SIGKILL)
        child.process.wait()
    [shown] = vduse("dev", "show", "disk0")["devices"]
    assert shown["program"] is None
    deleted = vduse("dev", "del", "disk0")
    assert (deleted["device"]["on_bus"], deleted["notes"]) == (False, [])
