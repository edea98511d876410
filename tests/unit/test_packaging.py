"""What a host installs for ordinary users; tests/kernel shows it at work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rules.tree import ROOT
from vduse.channel.kernel_records import runtime_directory
from vduse.daemon.doctor.kernel import MODULES

PACKAGING = ROOT / "packaging"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A root that everything was installed into."""
    done = subprocess.run(
        [PACKAGING / "install"],
        env={**os.environ, "DESTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return tmp_path


def test_files_go_where_they_are_looked_for(host: Path) -> None:
    found = {str(path.relative_to(host)) for path in host.rglob("*") if path.is_file()}
    assert found == {
        "usr/lib/sysusers.d/vduse.conf",
        "usr/lib/modules-load.d/vduse.conf",
        "usr/lib/udev/rules.d/60-vduse.rules",
        "usr/lib/systemd/system/vduse@.service",
    }
    assert {path.stat().st_mode & 0o777 for path in host.rglob("*.*") if path.is_file()} == {0o644}


def test_modules_are_those_that_the_doctor_looks_for(host: Path) -> None:
    lines = (host / "usr/lib/modules-load.d/vduse.conf").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == list(MODULES)


def test_the_services_records_are_not_in_roots_own_folder(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    lines = (host / "usr/lib/systemd/system/vduse@.service").read_text().splitlines()
    [name] = [line.split("=")[1] for line in lines if line.startswith("RuntimeDirectory=")]
    assert f"/run/{name}" != runtime_directory()


@pytest.mark.needs("systemctl")
def test_user_and_group_are_made(host: Path) -> None:
    (host / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={host}"], check=True, capture_output=True)
    [user] = (host / "etc/passwd").read_text().splitlines()
    name, _, _, _, _, home, shell = user.split(":")
    assert (name, home, shell) == ("vduse", "/var/lib/vduse", "/usr/sbin/nologin")
    assert (host / "etc/group").read_text().startswith("vduse:")


@pytest.fixture
def unit(host: Path) -> Path:
    """The unit, of programs that are there."""
    path = host / "usr/lib/systemd/system/vduse@.service"
    path.write_text(path.read_text().replace("=vduse ", "=/bin/true "))
    path.write_text(path.read_text().replace("=+vduse ", "=+/bin/true "))
    return path


def analyze(unit: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "--no-pager", *words],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{unit.parent}:"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.needs("systemctl")
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path) -> None:
    assert analyze(unit, "verify", "vduse@disk0.service") == (0, "")


@pytest.mark.needs("systemctl")
def test_unit_is_confined(unit: Path) -> None:
    """systemd's own measure, of 100; an unconfined service has 96."""
    status, said = analyze(unit, "security", "--offline=yes", "--threshold=25", str(unit))
    assert status == 0, said
