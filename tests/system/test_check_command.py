"""`vduse run --check` on a daemon that breaks rules: what CI sees of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

VDUSE = (sys.executable, "-m", "vduse.daemon")
#: Agrees to everything, and serves nothing. Its disk has no room for a request.
AGREES = """
import fcntl, os
from vduse.control.abi import *
control = os.open('/dev/vduse/control', os.O_RDWR)
config = DevConfig(name='yes', vendor_id=0, device_id=2, features=1 << 32 | 1 << 33, vq_num=1,
                   vq_align=4096, config=bytes(60))
try:
    fcntl.ioctl(control, Ioctl.CREATE_DEV, config.pack())
except FileExistsError:
    pass
device = os.open('/dev/vduse/yes', os.O_RDWR)
fcntl.ioctl(device, Ioctl.VQ_SETUP, VqConfig(0, 64).pack())
while data := os.read(device, 152):
    os.write(device, DevResponse(DevRequest.unpack(data).request_id).pack())
"""


def check(*program: str, junit: Path) -> tuple[int, dict[str, Any]]:
    """The exit code, and the facts of the report."""
    command = [*VDUSE, "run", "--json", "--check", "--junit", str(junit), "--", *program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=280, check=False)
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    (found,) = [fact for fact in facts if fact["event"] == "found"]
    (device,) = found["facts"]["devices"]
    return done.returncode, device


def test_a_daemon_that_breaks_a_rule_is_exit_code_1(tmp_path: Path) -> None:
    junit = tmp_path / "report.xml"
    code, device = check(sys.executable, "-c", AGREES, junit=junit)
    assert code == 1
    states = {rule["id"]: rule["state"] for rule in device["rules"]}
    assert states["status.features-unoffered"] == "failed"
    assert states["status.unmapped-queue"] == "failed"
    assert states["state.unknown-queue"] == "failed"
    (suite,) = ElementTree.parse(junit).getroot()
    assert int(suite.attrib["failures"]) == list(states.values()).count("failed")
