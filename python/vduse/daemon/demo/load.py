"""A short load on the disk's driver, with the native load generator."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from vduse import _native
from vduse.daemon.demo.report import Load

#: Seconds a load; bytes of the disk it uses.
_SECONDS = 0.3
_SPAN = 64 << 20
LOADS = (
    ("randread", 4096, 32),
    ("randwrite", 4096, 32),
    ("read", 1 << 20, 4),
    ("write", 1 << 20, 4),
)


def loads(driver: _native.BlkDriver, *, write: bool) -> Iterator[Load]:
    """Runs them one by one; those that write overwrite the start of the disk."""
    for op, block_size, depth in LOADS:
        if (write or op.endswith("read")) and block_size <= driver.size:
            yield _run(driver, op, block_size, depth)


def _run(driver: _native.BlkDriver, op: str, block_size: int, depth: int) -> Load:
    result = _native.load_ours(
        driver,
        {
            "op": op,
            "block_size": block_size,
            "depth": depth,
            "seconds": _SECONDS,
            "seed": 1,
            "span": min(_SPAN, driver.size),
        },
    )
    if result["errors"]:
        failed = f"{op}: {result['errors']} of {result['requests']} requests failed"
        raise OSError(errno.EIO, failed)
    seconds = result["seconds"]
    return Load(
        op=op,
        block_size=block_size,
        depth=depth,
        requests=result["requests"],
        seconds=seconds,
        iops=result["requests"] / seconds,
        mb_per_second=result["bytes"] / seconds / 1e6,
    )
