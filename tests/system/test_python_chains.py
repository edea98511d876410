"""Chains in Python's hands: who owns them and their memory, and for how long."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.python_chains import Stage, offer, stage
from tests.system.stage import LIMIT
from vduse import _native
from vduse.testing.rawdriver import FREE
from vduse.testing.rings import WRITE

__all__ = ["stage"]

both_formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


def raise_after_first(_: int, batch: _native.ChainBatch) -> None:
    batch[0].write(b"done")
    batch[0].complete()
    raise LookupError("a mistake of the program")


@both_formats
def test_a_chain_is_read_and_written_piece_by_piece(stage: Stage, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        assert raw.start()
        raw.memory.write(FREE, b"abcdef")
        parts = [(raw.at(FREE), 2, 0), (raw.at(FREE + 2), 4, 0)]
        parts += [(raw.at(FREE + 0x100), 3, WRITE), (raw.at(FREE + 0x200), 5, WRITE)]
        raw.submit(parts)
        raw.kick()
        chain = stage.device.take()
        assert [bytes(piece) for piece in chain.readable] == [b"ab", b"cdef"]
        assert (chain.readable_length, chain.writable_length) == (6, 8)
        assert chain.read() == b"abcdef"
        first, second = chain.writable
        first[:] = b"123"
        second[1] = ord("5")
        assert chain.write(b"4", 3) == 1
        assert not chain.ended
        chain.complete(5)
        (used,) = raw.wait_used(1)
        assert used.length == 5
        assert raw.memory.read(FREE + 0x100, 3) + raw.memory.read(FREE + 0x200, 2) == b"12345"


@both_formats
def test_chains_are_completed_in_any_order_from_any_thread(stage: Stage, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        assert raw.start()
        ids = [offer(raw, 4) for _ in range(8)]
        chains = [stage.device.take() for _ in ids]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda chain: chain.complete(0), reversed(chains)))
        assert sorted(used.id for used in raw.wait_used(8)) == sorted(ids)
    assert stage.device.stats()["in_flight"] == 0


def test_writes_follow_each_other_and_stop_where_the_room_ends(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 6)
        chain = stage.device.take()
        assert [chain.write(b"abcd"), chain.write(b"efgh"), chain.write(b"x", 7)] == [4, 2, 0]
        chain.complete()
        (used,) = raw.wait_used(1)
        assert (used.length, raw.memory.read(FREE, 6)) == (6, b"abcdef")


def test_a_chain_ends_once(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 6, b"question")
        chain = stage.device.take()
        with pytest.raises(ValueError, match="room for 6 bytes"):
            chain.complete(7)
        view = chain.writable[0]
        chain.complete(6)
        assert chain.ended
        for use in (chain.complete, chain.read, lambda: chain.write(b""), lambda: chain.readable):
            with pytest.raises(ValueError, match="completed already"):
                use()
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        assert [used.length for used in raw.wait_used(1)] == [6]
        assert stage.log.lines == []


def test_a_batch_is_a_sequence_and_completes_its_rest(stage: Stage) -> None:
    seen: list[int] = []

    def serve(queue: int, batch: _native.ChainBatch) -> None:
        seen.append(len(list(batch)))
        assert [batch[index] for index in range(len(batch))] == list(batch)
        batch[-1].complete(1)
        batch.complete(0)

    stage.device.serve = serve
    with stage.raw() as raw:
        assert raw.start()
        for _ in range(5):
            raw.submit([(raw.at(FREE), 4, WRITE)])
        raw.kick()
        assert len(raw.wait_used(5)) == 5
    assert sum(seen) == 5
    assert stage.log.lines == []


@both_formats
def test_what_a_handler_raises_is_logged_and_the_device_goes_on(stage: Stage, packed: bool) -> None:
    stage.device.serve = raise_after_first
    with stage.raw(packed=packed) as raw:
        assert raw.start()
        for _ in range(2):
            raw.submit([(raw.at(FREE), 4, WRITE)])
        raw.kick()
        lengths = sorted(used.length for used in raw.wait_used(2))
        assert lengths in ([0, 4], [4, 4])  # one batch, or two
        line = stage.log.wait_for("virtqueue 0: a batch of chains failed")
        assert line.splitlines()[-1] == "LookupError: a mistake of the program"
    stage.device.serve = None
    stage.check_whole(packed=packed)
    assert stage.device.fault is None


def test_a_chain_that_is_dropped_is_completed_with_nothing(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 4)
        chain = stage.device.take()
        cycle: list[object] = [chain]
        cycle.append(cycle)
        del chain, cycle
        gc.collect()
        assert [used.length for used in raw.wait_used(1)] == [0]
        stage.log.wait_for("virtqueue 0: 1 chains were dropped and not completed")
    assert stage.device.stats()["errors"] == 1


def test_a_part_of_a_view_outlives_its_chain_and_is_reported(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 8)
        chain = stage.device.take()
        part = chain.writable[0][2:4]
        chain.complete(8)
        assert raw.wait_used(1)
        stage.log.wait_for("virtqueue 0: 1 memoryviews of a chain that has ended are still in use")
        raw.memory.write(FREE, b"abcdefgh")
        assert bytes(part) == b"cd"
    assert bytes(part) == b"cd"


@both_formats
def test_a_reset_takes_chains_back(stage: Stage, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        assert raw.start()
        offer(raw, 4, b"question")
        chain = stage.device.take()
        view = chain.writable[0]
        raw.reset()
        assert chain.ended
        for use in (chain.read, lambda: chain.write(b"late"), lambda: chain.readable):
            with pytest.raises(ConnectionResetError):
                use()
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        chain.complete(4)
        assert raw.take_used() == []
        assert raw.memory.read(FREE, 4) == bytes(4)
    assert stage.log.lines == []
    stage.check_whole(packed=packed)


def test_a_reset_waits_for_parts_of_views(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 4)
        chain = stage.device.take()
        part = chain.writable[0][1:]
        reset = threading.Thread(target=raw.reset)
        reset.start()
        stage.log.wait_for("virtqueue 0: 1 memoryviews of a chain that has ended are still in use")
        assert reset.is_alive()
        part[0] = 1
        part.release()
        reset.join(LIMIT)
        assert not reset.is_alive()
    stage.check_whole()


@both_formats
def test_a_drain_waits_for_chains_and_says_so(stage: Stage, packed: bool) -> None:
    with stage.raw(packed=packed) as raw, ThreadPoolExecutor(1) as thread:
        assert raw.start()
        offer(raw, 4)
        chain = stage.device.take()
        base = thread.submit(raw.driver.get_vring_base, 0)
        assert stage.device.draining.wait(LIMIT)
        assert not base.done()
        chain.write(b"last")
        chain.complete()
        assert base.result(LIMIT) & 0x7FFF == 1
        assert [used.length for used in raw.take_used()] == [4]


def test_a_forked_child_cannot_use_a_chain_nor_end_it(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        offer(raw, 4)
        chain = stage.device.take()
        views = chain.writable
        child = os.fork()
        if child == 0:
            code = 0
            uses = [chain.complete, chain.read, lambda: chain.write(b"x"), lambda: chain.writable]
            for use in uses:
                try:
                    use()
                except RuntimeError:
                    code += 1
            del chain, views, uses, use
            gc.collect()
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert not chain.ended
        del views
        chain.write(b"ours")
        chain.complete()
        (used,) = raw.wait_used(1)
        assert used.length == 4
