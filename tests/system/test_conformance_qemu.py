"""What is wrong with qemu-storage-daemon where requests take their time: docs/conformance-qemu.md.
Its null-co node answers after a while; only what is in flight meanwhile is looked at."""

from __future__ import annotations

import pytest

from tests.system.qemu_daemon import PROGRAM, on_null
from vduse.check.checker import check
from vduse.check.report import Report
from vduse.check.scenario import Scenario
from vduse.check.scenarios import reset, state
from vduse.check.watch import Watch
from vduse.framework import Framework
from vduse.run.program import Exit
from vduse.testing.daemon import Daemon

pytestmark = pytest.mark.needs("qemu-storage-daemon")

#: Nanoseconds that a request takes.
SLOW = 200_000_000


def checked(scenario: Scenario) -> tuple[Report, tuple[Exit, ...]]:
    """The report, and how the daemon ended meanwhile. It is started again, as by `vduse run`."""
    watch = Watch()
    with (
        Framework(tap=watch) as framework,
        Daemon(framework, [PROGRAM, *on_null(1 << 20, latency=SLOW)], restart=True) as daemon,
    ):
        name = daemon.device()
        framework.dev_add(name, driver="vhost_vdpa")
        report = check(
            framework, name, watch, kill=lambda: daemon.replace(name), scenarios=[scenario]
        )
        return report, daemon.exits


def evidence(report: Report, rule: str) -> str:
    """What shows that it is broken."""
    [verdict] = [verdict for verdict in report.failed if verdict.rule.id == rule]
    return "\n".join(verdict.detail)


def test_get_vq_state_is_answered_with_requests_in_flight() -> None:
    """libvduse answers with the position up to which it has taken requests."""
    report, _ = checked(state.SCENARIO)
    assert "16 chains were used after the answer" in evidence(report, "state.drained")


def test_a_reset_with_requests_in_flight_aborts_it() -> None:
    """libvduse's assertion that none is: vduse_queue_disable()."""
    report, exits = checked(reset.SCENARIO)
    assert "SIGABRT" in [end.signal for end in exits]
    assert "died" in evidence(report, "reset.again")
