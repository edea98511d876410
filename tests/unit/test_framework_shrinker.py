"""RFC v2's shrinker: one device at a time, and rotate."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vduse.framework import shrinker
from vduse.framework.shrinker import Reclaimable, Shrinker


@dataclass
class Bounce:
    """A device with idle bounce pages."""

    name: str
    idle: int
    reclaimed: int = 0

    def reclaim(self) -> int:
        freed, self.idle = self.idle, 0
        self.reclaimed += 1
        return freed


@pytest.fixture(autouse=True)
def no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinker, "_open_source", lambda: ("none", -1))


@pytest.fixture
def devices() -> list[Reclaimable]:
    return [Bounce("b", 20), Bounce("a", 10), Bounce("c", 0), Bounce("d", 40)]


@pytest.fixture
def made(devices: list[Reclaimable]) -> Iterator[Shrinker]:
    each = Shrinker(lambda: devices)
    yield each
    each.close()


def test_one_device_at_a_time_and_the_next_the_next_time(
    made: Shrinker, devices: list[Bounce]
) -> None:
    assert made.reclaim() == 10
    assert [each.reclaimed for each in devices] == [0, 1, 0, 0]
    devices[1].idle = 11
    assert made.reclaim() == 20
    assert made.reclaim() == 40  # c has nothing idle
    assert made.reclaim() == 11
    assert made.reclaim() == 0
    stats = made.stats()
    assert (stats.runs, stats.bytes, stats.events, stats.source) == (4, 81, 0, "none")


def test_pressure_reclaims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressure is POLLPRI on an fd; a socket's out-of-band byte is that, too."""
    receiver, sender = _tcp_pair()
    monkeypatch.setattr(shrinker, "_open_source", lambda: ("psi", os.dup(receiver.fileno())))
    reclaimed = threading.Event()

    class Signalling(Bounce):
        def reclaim(self) -> int:
            receiver.recv(1, socket.MSG_OOB)
            reclaimed.set()
            return super().reclaim()

    made = Shrinker(lambda: [Signalling("a", 10)])
    sender.send(b"!", socket.MSG_OOB)
    assert reclaimed.wait(60)
    made.close()
    stats = made.stats()
    assert (stats.events, stats.bytes, stats.source) == (1, 10, "psi")
    receiver.close()
    sender.close()


def test_a_source_that_is_gone_is_watched_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trigger whose cgroup was removed is POLLERR for ever, as a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(shrinker, "_open_source", lambda: ("psi", writer))
    warned = threading.Event()
    monkeypatch.setattr(shrinker.log, "warning", lambda *_: warned.set())
    asked: list[int] = []

    def devices() -> list[Reclaimable]:
        asked.append(1)
        return []

    made = Shrinker(devices)
    assert warned.wait(60)
    made.close()
    assert asked == []
    assert made.stats().events == 0


def _tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    return receiver, sender


@pytest.mark.needs("psi")
def test_the_kernel_takes_our_psi_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = Shrinker(list)
    assert made.stats().source == "psi"
    made.close()


def test_without_psi_and_cgroup_there_is_no_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(shrinker, "_PSI_TRIGGER", b"nonsense")
    monkeypatch.setattr(shrinker, "_own_cgroup", lambda: tmp_path)
    made = Shrinker(list)
    assert made.stats().source == "none"
    made.close()


def test_the_cgroups_memory_events_stand_in_for_psi(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(shrinker, "_PSI_TRIGGER", b"nonsense")
    monkeypatch.setattr(shrinker, "_own_cgroup", lambda: tmp_path)
    (tmp_path / "memory.events").write_text("high 0\n")
    made = Shrinker(list)
    assert made.stats().source == "memory.events"
    made.close()
