"""The watching tap of the conformance check: whatever crosses, it raises nothing and its memory has
an end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vduse.check import rules
from vduse.check.watch import Watch
from vduse.control import abi
from vduse.control.abi import DevConfig, DevRequest, DevResponse, SetStatus

NUMBERS = st.one_of(
    st.sampled_from([*abi.Ioctl, *abi.ExtCall]).map(int), st.integers(0, (1 << 32) - 1)
)


def created(watch: Watch, name: str, *, result: int = 0, queues: int = 0) -> None:
    config = DevConfig(name, 0, 2, 0, queues, 4096)
    watch.on_call("", abi.Ioctl.CREATE_DEV, config.pack(), 0, result, b"", 0)


@given(st.lists(st.tuples(NUMBERS, st.binary(max_size=400)), max_size=8), st.booleans())
def test_refused_calls_may_be_anything(calls: list[tuple[int, bytes]], control: bool) -> None:
    watch = Watch()
    for nr, payload in calls:
        watch.on_call("" if control else "vd0", nr, payload, 0, -22, b"", 0)


@given(st.lists(st.binary(max_size=200) | st.binary(min_size=152, max_size=152), max_size=8))
def test_answers_may_be_anything(answers: list[bytes]) -> None:
    watch = Watch()
    watch.on_open("vd0")
    watch.on_message("vd0", DevRequest(0, SetStatus(0)).pack())
    for data in answers:
        watch.on_response("vd0", data)
    watch.on_close("vd0")
    watch.device("vd0").finish()


def test_names_without_end_are_not_kept() -> None:
    watch = Watch()
    for number in range(1000):
        created(watch, f"vd{number}", result=-22)
    assert len(watch.devices()) < 100
    created(watch, "real")
    assert "real" in [device.name for device in watch.devices()]


def test_evidence_and_tail_have_an_end() -> None:
    watch = Watch()
    for number in range(1000):
        watch.on_response("vd0", DevResponse(number).pack())
    device = watch.device("vd0")
    (verdict,) = [v for v in device.ledger.verdicts() if v.state == "failed"]
    assert verdict.rule is rules.MESSAGE_ID
    assert verdict.broken == 1000
    assert len(verdict.detail) == 3
    assert len(device.tail(10_000).splitlines()) == 64


def test_an_interrupt_on_its_way_when_driver_ok_is_answered_breaks_nothing() -> None:
    """The answer and the call come by two ways: which was first cannot be seen."""
    watch = Watch()
    created(watch, "vd0")
    watch.on_message("vd0", DevRequest(1, SetStatus(0xF)).pack())
    watch.on_call("vd0", abi.Ioctl.VQ_INJECT_IRQ, abi.pack_u32(0), 0, -22, b"", 0)
    watch.on_response("vd0", DevResponse(1).pack())
    assert watch.device("vd0").ledger.failures == 0
