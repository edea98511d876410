"""What a host installs for ordinary users; tests/kernel shows it at work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.rules.tree import ROOT
from vduse.channel.kernel_records import runtime_directory
from vduse.daemon.doctor.kernel import MODULES
from vduse.daemon.storage.config.check import check

PACKAGING = ROOT / "packaging"
SERVICES = ("vduse@.service", "vduse-storage-daemon@.service")
SOCKETS = ("vduse-nbd@.socket", "vduse-qmp@.socket")
UNITS = "usr/lib/systemd/system"


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
        *(f"{UNITS}/{unit}" for unit in (*SERVICES, *SOCKETS)),
        *(f"usr/share/man/man1/{page}" for page in ("vduse.1", "vduse-storage-daemon.1")),
    }
    assert {path.stat().st_mode & 0o777 for path in host.rglob("*.*") if path.is_file()} == {0o644}


def test_modules_are_those_that_the_doctor_looks_for(host: Path) -> None:
    lines = (host / "usr/lib/modules-load.d/vduse.conf").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == list(MODULES)


@pytest.mark.parametrize("service", SERVICES)
def test_the_services_records_are_not_in_roots_own_folder(
    service: str, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    [name] = setting(host / UNITS / service, "RuntimeDirectory")
    assert f"/run/{name}" != runtime_directory()


@pytest.mark.parametrize("service", SERVICES)
def test_a_hung_service_is_killed_before_the_kernel_gives_its_devices_up(
    service: str, host: Path
) -> None:
    [watchdog] = setting(host / UNITS / service, "WatchdogSec")
    assert float(watchdog.removesuffix("s")) < 30  # msg_timeout of a VDUSE device


@pytest.mark.parametrize("name", SOCKETS)
def test_sockets_are_the_storage_daemons_by_name(name: str, host: Path) -> None:
    path = host / UNITS / name
    kind = name.split("@")[0].removeprefix("vduse-")
    assert setting(path, "Service") == ["vduse-storage-daemon@%i.service"]
    assert setting(path, "FileDescriptorName") == [kind]
    assert setting(path, "ListenStream") == [f"%t/vduse-services/%i.{kind}"]


@pytest.mark.parametrize("name", SOCKETS)
def test_what_a_socket_unit_says_of_the_file_is_so(name: str) -> None:
    lines = (PACKAGING / name).read_text().split("[Unit]")[0].splitlines()
    said = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    assert check(said).mistakes == ()


def setting(unit: Path, name: str) -> list[str]:
    """All values of it in a unit."""
    lines = unit.read_text().splitlines()
    return [line.split("=", 1)[1] for line in lines if line.startswith(f"{name}=")]


@pytest.mark.needs("systemctl")
def test_user_and_group_are_made(host: Path) -> None:
    (host / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={host}"], check=True, capture_output=True)
    [user] = (host / "etc/passwd").read_text().splitlines()
    name, _, _, _, _, home, shell = user.split(":")
    assert (name, home, shell) == ("vduse", "/var/lib/vduse", "/usr/sbin/nologin")
    assert (host / "etc/group").read_text().startswith("vduse:")


@pytest.fixture
def units(host: Path) -> Path:
    """The folder of the units, of programs that are there."""
    folder = host / UNITS
    for service in SERVICES:
        path = folder / service
        path.write_text(path.read_text().replace("=vduse ", "=/bin/true "))
        path.write_text(path.read_text().replace("=+vduse ", "=+/bin/true "))
    return folder


def analyze(units: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "--no-pager", *words],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.needs("systemctl")
@pytest.mark.parametrize("name", [*SERVICES, *SOCKETS])
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, units: Path) -> None:
    assert analyze(units, "verify", name.replace("@", "@disk0")) == (0, "")


@pytest.mark.needs("systemctl")
@pytest.mark.parametrize("service", SERVICES)
def test_service_is_confined(service: str, units: Path) -> None:
    """systemd's own measure, of 100; an unconfined service has 96."""
    unit = str(units / service)
    status, said = analyze(units, "security", "--offline=yes", "--threshold=25", unit)
    assert status == 0, said
