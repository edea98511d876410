"""The spelling of ``rbd:`` (docs/backends/rbd.md)."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.rbd import RbdImage, parse_image
from vduse.backends.spec import open_backend

DEFAULTS: dict[str, Any] = {
    "namespace": None,
    "snapshot": None,
    "conf": None,
    "mon_host": None,
    "auth": None,
    "id": None,
    "keyring": None,
    "key": None,
    "read_only": False,
    "direct": False,
    "lock": "refuse",
    "open_timeout": 30,
    "reconnect_delay": None,
}


class Opened:
    """Stands where the native module opens an image."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.error: OSError | None = None

    def __call__(self, pool: str, image: str, **options: Any) -> _native.Backend:
        self.given = {"pool": pool, "image": image, **options}
        if self.error is not None:
            raise self.error
        return _native.Backend.memory(1 << 20)

    def beyond_defaults(self) -> dict[str, Any]:
        """What was given and is not the default."""
        assert set(self.given) == {"pool", "image", *DEFAULTS}
        unset = object()
        return {k: v for k, v in self.given.items() if v != DEFAULTS.get(k, unset)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    monkeypatch.setattr(_native, "rbd_backend", opened)
    return opened


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("rbd/disk", RbdImage("rbd", "disk")),
        ("rbd/space/disk", RbdImage("rbd", "disk", "space")),
        ("rbd/disk@monday", RbdImage("rbd", "disk", None, "monday")),
        ("rbd/space/disk@a/b", RbdImage("rbd", "disk", "space", "a/b")),
    ],
)
def test_an_image_is_named_as_by_ceph(name: str, image: RbdImage) -> None:
    assert parse_image(name) == image


@pytest.mark.parametrize("name", ["", "disk", "rbd/", "/disk", "a/b/c/d", "rbd/disk@", "@snap"])
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match="name an image as POOL/"):
        open_backend(f"rbd:{name}")


def test_an_image_alone_has_the_defaults(opened: Opened) -> None:
    open_backend("rbd:pool/disk")
    assert opened.beyond_defaults() == {"pool": "pool", "image": "disk"}


def test_every_key_reaches_the_library(opened: Opened, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("AQBkey==\n")
    open_backend(
        f"rbd:pool/space/disk@snap,conf=c.conf,id=me,key-secret={secret},lock=break,"
        "open-timeout=2s,on-error=report,reconnect-delay=500ms",
        read_only=True,
        direct=True,
    )
    assert opened.beyond_defaults() == {
        "pool": "pool",
        "image": "disk",
        "namespace": "space",
        "snapshot": "snap",
        "conf": "c.conf",
        "id": "me",
        "key": "AQBkey==",
        "lock": "break",
        "open_timeout": 2,
        "reconnect_delay": 0.5,
        "read_only": True,
        "direct": True,
    }


def test_requests_that_report_wait_for_half_a_minute(opened: Opened) -> None:
    open_backend("rbd:pool/disk,on-error=report,keyring=k")
    assert opened.given["reconnect_delay"] == 30
    assert opened.given["keyring"] == "k"


def test_a_disk_that_migrates_shares_its_lock(opened: Opened) -> None:
    open_backend("rbd:pool/disk", lock_late=True)
    assert opened.given["lock"] == "share"
    open_backend("rbd:pool/disk,lock=refuse", lock_late=True)
    assert opened.given["lock"] == "refuse"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("keyrin=x", "no such key 'keyrin', did you mean 'keyring'"),
        ("lock=steal", "lock: 'steal' is none of refuse, break, share"),
        ("on-error=stop", "on-error: 'stop' is none of wait, report"),
        ("open-timeout=3", "open-timeout: '3' is not a time"),
        ("key-secret=/nowhere/key", "key-secret: /nowhere/key: No such file or directory"),
        ("reconnect-delay=3s", "reconnect-delay is for on-error=report"),
        ("id", "'id' is not key=value"),
    ],
)
def test_mistakes_are_named(keys: str, why: str) -> None:
    with pytest.raises(BackendError) as caught:
        open_backend(f"rbd:pool/disk,{keys}")
    assert why in str(caught.value)


def test_a_secret_beside_a_keyring_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("AQBkey==\n")
    with pytest.raises(BackendError, match="keyring and key-secret: one of them"):
        open_backend(f"rbd:pool/disk,keyring=k,key-secret={secret}")


def test_an_image_takes_no_size() -> None:
    with pytest.raises(BackendError, match="change it: rbd resize pool/disk"):
        open_backend("rbd:pool/disk,id=me", size=1 << 20)


def test_what_the_library_says_is_the_error(opened: Opened) -> None:
    opened.error = OSError(errno.ENOENT, "pool/disk: no such image")
    with pytest.raises(BackendError) as caught:
        open_backend("rbd:pool/disk")
    assert str(caught.value) == "pool/disk: no such image"
