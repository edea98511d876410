"""The load generator on our own driver: through bounce pages and on an arena."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from vduse.control.features import Feature
from vduse.testing.arena import ArenaBlk
from vduse.testing.harness import Where, blk_stack
from vduse.testing.load import Op, Spec, run_ours

VERIFIED = Spec(op="mixed", requests=3000, depth=32, verify=True, span=4 << 20)


@pytest.mark.parametrize("where", ["process", "child"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("op", ["read", "randwrite", "mixed"])
def test_bounce_pages_carry_what_is_written(op: Op, packed: bool, where: Where) -> None:
    with blk_stack(packed=packed, queues=2, where=where) as stack:
        spec = Spec(op=op, requests=3000, depth=32, verify=True, span=4 << 20)
        report = run_ours(stack.native, spec)
        assert (report.requests, report.errors) == (3000, 0), report.messages


def test_a_domain_smaller_than_the_load() -> None:
    with blk_stack(bounce_size=1 << 20) as stack:
        spec = Spec(op="mixed", block_size=256 << 10, requests=200, depth=32, verify=True)
        report = run_ours(stack.native, spec)
        assert report.errors == 0, report.messages
        assert stack.vdpa.domain.stats()["bounce_bytes_in_use"] == 0


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_an_arena_carries_what_is_written(packed: bool) -> None:
    without = 0 if packed else Feature.RING_PACKED
    with blk_stack(packed=True, queues=2, driver="vhost_vdpa") as stack:
        lines = [stack.vdpa.vq_line(index) for index in range(2)]
        for _ in range(2):
            with ArenaBlk(stack.driver, lines, without=without) as blk:
                report = run_ours(blk.native, VERIFIED, blk.arena)
                assert report.errors == 0, report.messages


def test_a_span_beyond_the_disk_is_refused() -> None:
    with blk_stack(size=8 << 20) as stack, pytest.raises(ValueError, match="more than the disk"):
        run_ours(stack.native, Spec(requests=1, span=16 << 20))


def test_an_interrupt_ends_the_load(request: pytest.FixtureRequest) -> None:
    # Whoever runs the tests in the background may have it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with blk_stack(backend="null") as stack:

        def interrupt() -> None:
            while stack.native.stats()["requests"] == 0:
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            run_ours(stack.native, Spec(seconds=60))
        thread.join()
        assert run_ours(stack.native, Spec(requests=10)).errors == 0
