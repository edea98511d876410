"""The backend ``nbd`` over TLS, on other projects' servers: who is trusted, and who is not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.disks import disk_on, zeroes
from tests.system.nbd_servers import NbdServer, nbdkit, qemu_nbd
from tests.system.test_nbd_backend import BLOCK, SIZE
from tests.verified import Verified
from tests.waiting import eventually
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend

pytestmark = [pytest.mark.needs(name) for name in ("nbdkit", "qemu-nbd", "openssl")]


class Authority:
    """Signs certificates, in folders with the names that servers and clients look for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key, self.certificate = folder / "key.pem", folder / "cert.pem"
        _openssl(
            "req", "-x509", *_new_key(self._key), "-subj", "/CN=authority",
            "-addext", "basicConstraints=critical,CA:TRUE", "-out", self.certificate,
        )  # fmt: skip

    def issue(self, folder: Path, role: str, host: str) -> Path:
        """``folder`` with ca-cert.pem, and the certificate and key of a ``role``."""
        folder.mkdir(exist_ok=True)
        (folder / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        request, names = folder / "request.pem", folder / "names"
        names.write_text(f"subjectAltName=DNS:{host}\nextendedKeyUsage=serverAuth,clientAuth\n")
        key, certificate = folder / f"{role}-key.pem", folder / f"{role}-cert.pem"
        _openssl("req", *_new_key(key), "-subj", f"/CN={host}", "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-CAcreateserial", "-extfile", names, "-out", certificate,
        )  # fmt: skip
        return folder


def _new_key(path: Path) -> Sequence[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return zeroes(tmp_path / "disk.img", SIZE)


def qemu_with_tls(folder: Path, image: Path, credentials: Path) -> NbdServer:
    """It asks clients who they are."""
    tls = f"tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir={credentials}"
    return qemu_nbd(folder, image, "--object", tls, "--tls-creds=tls0")


def nbdkit_with_tls(folder: Path, image: Path, credentials: Path) -> NbdServer:
    """Any client will do."""
    tls = ["--tls=require", f"--tls-certificates={credentials}"]
    return nbdkit(folder, *tls, "file", str(image))


Make: TypeAlias = Callable[[Path, Path, Path], NbdServer]


def trusted(make: Make, folder: Path, image: Path, authority: Authority) -> tuple[NbdServer, str]:
    """A server that is not started yet, and the spec of a backend: each trusts the other."""
    credentials = authority.issue(folder / "server", "server", "localhost")
    client = authority.issue(folder / "client", "client", "somebody")
    server = make(folder, image, credentials)
    return server, f"{server.spec},tls-certificates={client}"


@pytest.mark.parametrize("make", [qemu_with_tls, nbdkit_with_tls])
def test_what_goes_by_tls_is_stored_though_the_server_is_killed(
    make: Make, tmp_path: Path, image: Path, authority: Authority
) -> None:
    server, spec = trusted(make, tmp_path, image, authority)
    with (
        server,
        disk_on(open_backend(spec)) as disk,
    ):
        with Verified(disk, threads=4, blocks=128) as load:
            for _ in range(2):
                load.go_on()
                server.kill()
                server.start()
            load.go_on()
        data = bytes(range(256)) * (4 << 12)
        disk.pwrite(data, 32 << 20)
        assert disk.pread(len(data), 32 << 20) == data
        disk.flush()
        load.check_file(image)


@pytest.mark.parametrize("make", [qemu_with_tls, nbdkit_with_tls])
def test_the_loss_of_a_session_that_nobody_uses_is_noticed(
    make: Make, tmp_path: Path, image: Path, authority: Authority
) -> None:
    server, spec = trusted(make, tmp_path, image, authority)
    with server:
        backend = open_backend(spec)
        try:
            server.kill()
            eventually(lambda: backend.connection["state"] == "lost", "the server is gone")
            server.start()
            eventually(lambda: backend.connection["state"] == "connected", "it is back")
            # What TLS itself says on an idle connection is no loss.
            assert backend.connection["reconnections"] == 1
        finally:
            backend.close()


#: What opening says of a server that does not listen yet.
_NOT_YET = (".sock: No such file or directory", ": Connection refused")


def refusal(server: NbdServer, client: str) -> str:
    """Why there is no connection to a server that is there."""
    spec = server.spec
    with pytest.raises(BackendError) as error:
        # The server may not listen yet: that is no answer to what is asked.
        while True:
            try:
                open_backend(spec.replace("60s", "0s") + client)
            except BackendError as refused:
                if str(refused).endswith(_NOT_YET):
                    continue
                raise
    return str(error.value)


def test_a_server_that_requires_tls_is_not_used_without(
    tmp_path: Path, image: Path, authority: Authority
) -> None:
    credentials = authority.issue(tmp_path / "server", "server", "localhost")
    with nbdkit_with_tls(tmp_path, image, credentials) as server:
        assert "the server requires TLS" in refusal(server, "")
    with qemu_with_tls(tmp_path, image, credentials) as server:
        assert "the server requires TLS" in refusal(server, "")


def test_a_server_without_tls_is_not_used_where_it_was_asked_for(
    tmp_path: Path, image: Path, authority: Authority
) -> None:
    client = authority.issue(tmp_path / "client", "client", "somebody")
    with qemu_nbd(tmp_path, image) as server:
        why = refusal(server, f",tls-certificates={client}")
        assert "the server has no TLS, which was asked for" in why


def test_a_server_of_another_authority_is_refused(
    tmp_path: Path, image: Path, authority: Authority
) -> None:
    credentials = authority.issue(tmp_path / "server", "server", "localhost")
    client = Authority(tmp_path / "other").issue(tmp_path / "client", "client", "somebody")
    with nbdkit_with_tls(tmp_path, image, credentials) as server:
        assert "invalid peer certificate" in refusal(server, f",tls-certificates={client}")


def test_a_certificate_for_another_host_is_refused(
    tmp_path: Path, image: Path, authority: Authority
) -> None:
    credentials = authority.issue(tmp_path / "server", "server", "store.example")
    client = authority.issue(tmp_path / "client", "client", "somebody")
    with nbdkit_with_tls(tmp_path, image, credentials) as server:
        why = refusal(server, f",tls-certificates={client}")
        assert "not valid for name" in why
        named = f"{server.spec},tls-certificates={client},tls-hostname=store.example"
        with disk_on(open_backend(named)) as disk:
            assert disk.pread(BLOCK, 0) == bytes(BLOCK)


def test_missing_certificates_are_named(tmp_path: Path, image: Path) -> None:
    with qemu_nbd(tmp_path, image) as server:
        assert "ca-cert.pem: No such" in refusal(server, f",tls-certificates={tmp_path}")
