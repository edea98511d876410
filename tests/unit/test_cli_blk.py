"""`vduse blk` when its device breaks, with a service that breaks when it is told to."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from vduse.bus.disk import Disk
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk import serve as module
from vduse.daemon.blk import service as real_service
from vduse.daemon.blk.choose import Way
from vduse.daemon.blk.facts import Serving
from vduse.daemon.commands import BlkOptions
from vduse.daemon.main import main
from vduse.exports.nbd import NbdServer

ARGV = ["blk", "null", "--size", "1M", "--nbd", "disk.sock"]


class Breaking:
    """Serves until it is looked at, and then does not."""

    closed = 0
    #: Of the close.
    failure: str | None = None

    def __init__(self, options: BlkOptions, backend: str, way: Way, _attachment: object) -> None:
        self._facts = Serving(
            event="serving",
            pid=1,
            name="disk0",
            backend=backend,
            size=1 << 20,
            read_only=False,
            ring="split",
            queues=1,
            queue_size=256,
            engine="none",
            via=way.via,
            why=way.why,
            driver="virtio_vdpa",
            node=None,
            socket=options.nbd,
            uri=f"nbd+unix:///?socket={options.nbd}",
            connects=False,
        )

    #: No metrics are asked for.
    watched = None

    def facts(self) -> Serving:
        return self._facts

    def broken(self) -> str | None:
        return "virtqueue 0: descriptor 9 of 4"

    def statistics(self) -> Statistics:
        return collect()

    def close(self) -> str | None:
        type(self).closed += 1
        return self.failure


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Breaking]:
    class Fresh(Breaking):
        pass

    monkeypatch.setattr(module, "Service", Fresh)
    return Fresh


def test_broken_device_is_named_and_the_exit_code_is_1(
    service: type[Breaking], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(ARGV) == 1
    shown = capsys.readouterr()
    assert shown.err == "vduse: disk0: virtqueue 0: descriptor 9 of 4\n"
    assert service.closed == 1


def test_broken_device_as_json(service: type[Breaking], capsys: pytest.CaptureFixture[str]) -> None:
    # What broke comes first, then what the close found.
    service.failure = "more"
    assert main([*ARGV, "--json"]) == 1
    begun, ended = map(json.loads, capsys.readouterr().out.splitlines())
    assert begun["event"] == "serving"
    assert (ended["event"], ended["broken"]) == ("ended", True)
    assert ended["reason"] == "virtqueue 0: descriptor 9 of 4; more"


def test_no_flush_waits_behind_requests_that_are_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close, facts = NbdServer.close, real_service.Service.facts
    flushed: list[Disk] = []

    def unanswered(server: NbdServer, timeout: float) -> bool:
        close(server, timeout)
        return False

    def stopped(service: real_service.Service) -> Serving:
        signal.raise_signal(signal.SIGTERM)
        return facts(service)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(NbdServer, "close", unanswered)
    monkeypatch.setattr(real_service.Service, "facts", stopped)
    monkeypatch.setattr(Disk, "flush", flushed.append)
    assert main(ARGV) == 1
    assert capsys.readouterr().err == "vduse: disk0: requests were not answered within 20 s\n"
    assert flushed == []


def test_reader_that_goes_away_ends_it_in_order(
    service: type[Breaking], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_text: Any) -> int:
        raise RuntimeError("nobody reads")

    monkeypatch.setattr("vduse.daemon.main._print", gone)
    assert main([*ARGV, "--json"]) == 1
    assert service.closed == 1
