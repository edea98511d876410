"""Crate ``vhost``, the front end of rust-vmm's VMMs, on our socket: every reply of ours is one that
it takes. Nobody here wrote it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vduse import _native
from vduse.control.features import Feature
from vduse.control.vhost_user import F_PROTOCOL_FEATURES, ProtocolFeature
from vduse.testing.harness import blk_stack

MIB = 1 << 20
QUEUES = 2


def test_every_message_of_the_crate_is_answered_as_it_expects(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    stack = blk_stack(
        backend=str(image), queues=QUEUES, packed=True, serial="crate-vhost", driver="vhost_vdpa"
    )
    with stack as running, running.vhost_user() as path:

        def grow() -> None:
            with image.open("r+b") as file:
                file.truncate(file.seek(0, 2) + MIB)
            running.blk.resize()

        talk = _native.vhost_frontend(path, grow)
    assert talk["features"] & F_PROTOCOL_FEATURES
    assert talk["features"] & Feature.RING_PACKED
    assert not talk["features"] & Feature.ACCESS_PLATFORM
    wanted = ProtocolFeature.CONFIG | ProtocolFeature.BACKEND_REQ | ProtocolFeature.INFLIGHT_SHMFD
    assert talk["protocol_features"] & wanted == wanted
    assert talk["queues"] == QUEUES
    assert talk["memory_slots"] >= 32
    assert struct.unpack_from("<Q", talk["config"]) == (MIB // 512,)
    assert talk["inflight"] > 0
    # Two rounds, a reset between them.
    assert talk["config_changes"] == 2
    assert talk["serials"] == [b"crate-vhost".ljust(20, b"\0")] * 2 * QUEUES
    assert talk["bases"] == [1] * 2 * QUEUES


def test_what_fails_beside_it_is_what_is_raised(tmp_path: Path) -> None:
    def refuse() -> None:
        raise LookupError("no such disk")

    with blk_stack(driver="vhost_vdpa") as stack, stack.vhost_user() as path:
        with pytest.raises(LookupError, match="no such disk"):
            _native.vhost_frontend(path, refuse)
        with pytest.raises(RuntimeError, match="connect: "):
            _native.vhost_frontend(str(tmp_path / "nobody"), refuse)
