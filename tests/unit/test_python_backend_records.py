"""Batches as arrays, and completion by token."""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest

from tests.unit.test_python_backend import Batches, on
from vduse.backends.python import IoBatch, IoOp
from vduse.testing.harness import BlkStack

FIELDS = ("token", "offset", "length", "address", "op", "may_unmap", "result")


def done_by(batch: IoBatch) -> None:
    """The program under test is in the callers."""
    batch.complete()


def test_array_is_the_batch() -> None:
    seen: list[tuple[object, ...]] = []

    def handle(batch: IoBatch) -> None:
        records = np.asarray(batch)
        assert records.dtype.names == FIELDS and records.itemsize == 40
        for record, request in zip(records, batch, strict=True):
            assert (record["token"], record["offset"]) == (request.token, request.offset)
            seen.append((IoOp(record["op"]).name, int(record["length"]), bool(record["may_unmap"])))
            assert (record["address"] != 0) == (request.op in ("read", "write"))
        assert np.shares_memory(records, np.asarray(batch))
        batch.complete()

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.pread(1024, 0)
        stack.disk.pwrite(bytes(512), 0)
        stack.disk.write_zeroes(0, 512)
    assert disk.stats()["exceptions"] == 0
    assert seen == [("READ", 1024, False), ("WRITE", 512, False), ("WRITE_ZEROES", 512, False)]


def test_address_is_that_of_the_data() -> None:
    def handle(batch: IoBatch) -> None:
        for record, request in zip(np.asarray(batch), batch, strict=True):
            data = np.frombuffer(request.buffer, np.uint8)
            assert record["address"] == data.ctypes.data
            data[:] = 0x5A
            del data
        batch.complete()

    disk = Batches(handle)
    with on(disk) as stack:
        assert stack.disk.pread(512, 0) == b"\x5a" * 512
    assert disk.stats()["exceptions"] == disk.stats()["stale_views"] == 0


def reads(stack: BlkStack, count: int) -> list[int]:
    """``count`` reads at once, of one sector each; how they ended, in order."""
    disk = stack.disk
    tokens = disk.submit([("read", 512 * n, bytearray(512)) for n in range(count)])
    done: dict[int, int] = {}
    while len(done) < count:
        done.update(disk.reap())
    return [done[token] for token in tokens]


def test_results_are_committed_by_one_call() -> None:
    def handle(batch: IoBatch) -> None:
        records = np.asarray(batch)
        assert batch.commit() == 0, "nothing was written yet"
        records["result"] = np.where(records["offset"] % 1024 == 0, 0, errno.ENOTSUP)
        assert batch.commit() == len(batch)
        assert batch.commit() == 0

    disk = Batches(handle)
    with on(disk) as stack:
        assert reads(stack, 16) == [512, -errno.EOPNOTSUPP] * 8
    assert disk.stats()["exceptions"] == 0


@pytest.mark.parametrize("result", [-2, 1 << 20, np.iinfo(np.int32).min])
def test_result_that_is_no_errno_is_eio(result: int) -> None:
    def handle(batch: IoBatch) -> None:
        np.asarray(batch)["result"] = result
        batch.commit()

    with on(Batches(handle)) as stack:
        assert reads(stack, 1) == [-errno.EIO]


def test_array_keeps_its_batch_open() -> None:
    kept: list[object] = []
    taken = threading.Event()

    def handle(batch: IoBatch) -> None:
        kept.append(np.asarray(batch)["offset"])
        taken.set()

    with on(Batches(handle)) as stack:
        [token] = stack.disk.submit([("read", 0, bytearray(512))])
        assert taken.wait(60)
        assert stack.disk.reap(1, 0.05) == []
        kept.clear()
        assert stack.disk.reap(1, 60) == [(token, -errno.EIO)]


def test_tokens_of_many_batches_are_completed_by_one_call() -> None:
    pending: list[np.ndarray] = []
    ready = threading.Semaphore(0)

    def handle(batch: IoBatch) -> None:
        pending.append(np.asarray(batch)["token"].copy())
        batch.defer()
        ready.release(len(batch))

    disk = Batches(handle)
    with on(disk) as stack:
        tokens = stack.disk.submit([("read", 512 * n, bytearray(512)) for n in range(8)])
        more = stack.disk.submit([("read", 512 * n, bytearray(512)) for n in range(8)])
        for _ in range(16):
            assert ready.acquire(timeout=60)
        mine = np.concatenate(pending)
        errors = np.zeros(16, np.int32)
        errors[0] = errno.ENOTSUP
        thread = threading.Thread(target=disk.complete, args=(mine, errors))
        thread.start()
        thread.join()
        done: dict[int, int] = {}
        while len(done) < 16:
            done.update(stack.disk.reap(1, 60))
        assert [done[token] for token in tokens + more] == [-errno.EOPNOTSUPP] + [512] * 15
        with pytest.raises(ValueError, match="16 of 16 tokens"):
            disk.complete(mine)
    assert disk.stats()["dropped"] == 0


def test_tokens_in_other_shapes() -> None:
    def handle(batch: IoBatch) -> None:
        records = np.asarray(batch)
        tokens = records["token"]
        if len(tokens) == 1:
            disk.complete(batch[0].token)
        elif len(tokens) == 2:
            disk.complete([int(token) for token in tokens], [0, 0])
        else:
            disk.complete(tokens[::2])  # no contiguous memory
            disk.complete(tokens[1::2], errno.EIO)

    disk = Batches(handle)
    with on(disk) as stack:
        for count in (1, 2, 7):
            assert len(reads(stack, count)) == count
    assert disk.stats()["exceptions"] == 0


@pytest.mark.parametrize("tokens", ["text", 1.5, [None], -1, b"bytes"])
def test_tokens_that_are_none_are_refused(tokens: object) -> None:
    disk = Batches(done_by)
    with pytest.raises((TypeError, ValueError)):
        disk.complete(tokens)  # type: ignore[arg-type]  # as a caller might
    disk.close()


def test_errors_of_another_number_are_refused() -> None:
    disk = Batches(done_by)
    with pytest.raises(ValueError, match="3 errors for 2 tokens"):
        disk.complete([1, 2], [0, 0, 0])
    with pytest.raises(ValueError, match="1 of 1 tokens name no open request"):
        disk.complete(1 << 40)
    disk.close()


def test_records_after_completion_have_no_address() -> None:
    def handle(batch: IoBatch) -> None:
        batch.complete()
        assert np.asarray(batch)["address"].tolist() == [0] * len(batch)
        with pytest.raises(ValueError):
            disk.complete(batch[0].token)

    disk = Batches(handle)
    with on(disk) as stack:
        stack.disk.pread(512, 0)
    assert disk.stats()["exceptions"] == 0
