"""The scenarios, from gentle to rough."""

from __future__ import annotations

from vduse.check.scenario import Scenario
from vduse.check.scenarios import (
    impossible,
    interrupts,
    iotlb,
    malformed,
    messages,
    negotiation,
    offers,
    queues,
    recovery,
    requests,
    reset,
    state,
)

SCENARIOS: tuple[Scenario, ...] = (
    offers.SCENARIO,
    negotiation.SCENARIO,
    requests.SCENARIO,
    interrupts.SCENARIO,
    queues.SCENARIO,
    iotlb.SCENARIO,
    recovery.SCENARIO,
    state.SCENARIO,
    impossible.SCENARIO,
    iotlb.UNMAPPED,
    iotlb.PERMISSION,
    messages.SCENARIO,
    reset.SCENARIO,
    malformed.SCENARIO,
)
