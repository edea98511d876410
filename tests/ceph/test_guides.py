"""The guides' commands for a cluster are true, and what they make is enough for the daemon."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.ceph.cluster import Cluster
from tests.rules.test_tour import blocks
from tests.rules.tree import ROOT
from tests.unit.qmp_client import QmpClient
from tests.unit.test_storage_options import NoControl
from tests.waiting import eventually
from vduse.daemon.storage.config.check import check
from vduse.daemon.storage.daemon import Daemon

pytestmark = pytest.mark.needs("ceph-mon", "ceph-osd", "rbd")


def page(name: str) -> str:
    return (ROOT / f"docs/guides/{name}.md").read_text()


def run(script: str, cluster: Cluster, folder: Path) -> str:
    """As the cluster's administrator."""
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "CEPH_CONF": str(cluster.conf)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, f"{script}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def here(text: str, cluster: Cluster, folder: Path) -> str:
    """A file of the guide's, with this cluster's configuration and folders of ours."""
    text = text.replace("/etc/ceph/", f"{folder}/").replace("/run/vduse-services/", f"{folder}/")
    text = text.replace('fd = "qmp"', f'path = "{folder}/qmp.sock"')
    text = text.replace('{type = "fd", str = "nbd"}', f'{{type = "unix", path = "{folder}/nbd"}}')
    return re.sub('(driver = "rbd")', rf'\1\nconf = "{cluster.conf}"', text)


def test_the_guides_user_serves_the_guides_image(cluster: Cluster, tmp_path: Path) -> None:
    first, *later = blocks(page("ceph"), "ceph")
    [end] = [block for block in later if block.startswith("rbd snap rm")]
    run(first, cluster, tmp_path)
    disks, monday = (check(here(text, cluster, tmp_path)) for text in blocks(page("ceph"), "toml"))
    assert (disks.mistakes, monday.mistakes) == ((), ())
    daemon = Daemon(NoControl(), disks.options)
    try:
        with QmpClient(f"{tmp_path}/qmp.sock") as client:
            [export] = client.call("query-block-exports")
            assert export["type"] == "vhost-user-blk"
            # Beside a daemon that has the image and its lock.
            for block in later:
                if block is not end:
                    run(block, cluster, tmp_path)
            eventually(lambda: size(client) == 20 << 30, "the new size")
    finally:
        daemon.close()
    Daemon(NoControl(), monday.options).close()
    run(end, cluster, tmp_path)


def size(client: QmpClient) -> int:
    """Of the one node."""
    [node] = client.call("query-named-block-nodes")
    return int(node["image"]["virtual-size"])


def test_commands_of_several_hosts(cluster: Cluster, tmp_path: Path) -> None:
    run("ceph osd pool create others; rbd pool init others", cluster, tmp_path)
    run("rbd create others/vm0 --size 1G", cluster, tmp_path)
    said = "".join(blocks(page("several-hosts"), "ceph"))
    run(said.replace("disks/", "others/"), cluster, tmp_path)
