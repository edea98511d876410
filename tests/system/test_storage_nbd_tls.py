"""The storage daemon's NBD server over TLS, with qemu-io, libnbd and our own client: who is let in,
and who is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.disks import disk_on, zeroes
from tests.system.test_nbd_backend import SIZE
from tests.system.test_nbd_backend_tls import Authority
from tests.system.test_storage_sockets import served, uri
from tests.verified import Verified
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.daemon.storage.daemon import OptionError

pytestmark = [pytest.mark.needs(name) for name in ("qemu-io", "nbdinfo", "openssl")]


class Site:
    """An image, an authority, and what the server's options are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self.server = self.authority.issue(folder / "server", "server", "localhost")
        self.client = self.authority.issue(folder / "client", "client", "somebody")
        self.image = zeroes(folder / "disk.img", SIZE)

    def options(self, more: str = "") -> tuple[str, ...]:
        return (
            f"--blockdev=file,filename={self.image},node-name=disk",
            f"--object=tls-creds-x509,id=tls0,endpoint=server,dir={self.server}{more}",
            f"--nbd-server=addr.type=unix,addr.path={self.folder}/nbd.sock,tls-creds=tls0",
            "--export=nbd,id=e,node-name=disk,writable=on",
        )

    def qemu_io(self, credentials: Path | None, *commands: str) -> str:
        words = [word for command in commands for word in ("-c", command)]
        options = f"driver=nbd,server.type=unix,server.path={self.folder}/nbd.sock,export=disk"
        secured = []
        if credentials is not None:
            secured = ["--object", f"tls-creds-x509,id=t,endpoint=client,dir={credentials}"]
            options += ",tls-creds=t,tls-hostname=localhost"
        ran = subprocess.run(
            ["qemu-io", *secured, *words, "--image-opts", options],
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stdout + ran.stderr

    def spec(self, credentials: Path) -> str:
        """Of our own client."""
        socket = f"{self.folder}/nbd.sock"
        return (
            f"nbds+unix:///disk?socket={socket}"
            f"&tls-certificates={credentials}&tls-hostname=localhost"
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_qemus_client_writes_by_tls_is_stored(site: Site) -> None:
    with served(site.folder, *site.options()):
        said = site.qemu_io(
            site.client,
            "write -P 0x5a 0 8M",
            "write -P 0xa5 8M 512",
            "flush",
            "read -P 0x5a 0 8M",
            "read -P 0xa5 8M 512",
        )
    assert "rror" not in said
    assert "failed" not in said
    stored = site.image.read_bytes()
    assert stored[: 8 << 20] == b"\x5a" * (8 << 20)
    assert stored[8 << 20 :][:512] == b"\xa5" * 512


def test_our_client_writes_at_random_by_tls(site: Site) -> None:
    with (
        served(site.folder, *site.options()),
        disk_on(open_backend(site.spec(site.client))) as disk,
    ):
        with Verified(disk, threads=4, blocks=128) as load:
            load.go_on(60)
        # More than any buffer on the way.
        data = bytes(range(256)) * (4 << 12)
        disk.pwrite(data, 32 << 20)
        assert disk.pread(len(data), 32 << 20) == data
        disk.flush()
        load.check_file(site.image)


def test_who_is_not_trusted_is_refused_and_others_are_served(site: Site) -> None:
    stranger = Authority(site.folder / "other").issue(site.folder / "stranger", "client", "x")
    # It trusts us, and we do not trust it.
    (stranger / "ca-cert.pem").write_bytes(site.authority.certificate.read_bytes())
    nobody = site.folder / "nobody"
    nobody.mkdir()
    (nobody / "ca-cert.pem").write_bytes(site.authority.certificate.read_bytes())
    with served(site.folder, *site.options()) as client:
        assert "TLS" in site.qemu_io(None, "read 0 512")
        listed = subprocess.run(["nbdinfo", "--list", uri(site.folder, "")], capture_output=True)
        assert listed.returncode != 0
        for credentials in (stranger, nobody):
            assert "read 512/512" not in site.qemu_io(credentials, "read 0 512")
            with pytest.raises(BackendError):
                open_backend(site.spec(credentials))
        assert "read 512/512" in site.qemu_io(site.client, "read 0 512")
        assert "by NBD server" in client.refusal("object-del", id="tls0")
        client.call("nbd-server-stop")
        client.call("object-del", id="tls0")


def test_with_verify_peer_off_a_client_needs_no_certificate(site: Site) -> None:
    nobody = site.folder / "nobody"
    nobody.mkdir()
    (nobody / "ca-cert.pem").write_bytes(site.authority.certificate.read_bytes())
    with served(site.folder, *site.options(",verify-peer=off")):
        assert "read 512/512" in site.qemu_io(nobody, "read 0 512")
        assert "TLS" in site.qemu_io(None, "read 0 512")


@pytest.mark.parametrize(
    ("credentials", "desc"),
    [
        ("tls-creds-x509,id=tls0,endpoint=client,dir={client}", "with a server endpoint"),
        ("secret,id=tls0,data=x", "No TLS credentials with id 'tls0'"),
        ("tls-creds-x509,id=tls0,endpoint=server,dir={broken}", "the server's certificate"),
    ],
)
def test_credentials_that_do_not_fit(site: Site, credentials: str, desc: str) -> None:
    broken = site.authority.issue(site.folder / "broken", "server", "localhost")
    (broken / "server-cert.pem").write_text("nothing\n")
    option = credentials.format(client=site.client, broken=broken)
    server = f"--nbd-server=addr.type=unix,addr.path={site.folder}/nbd.sock,tls-creds=tls0"
    with pytest.raises(OptionError) as refused, served(site.folder, f"--object={option}", server):
        pass
    assert desc in str(refused.value)
