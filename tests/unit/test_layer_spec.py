"""The command line's spelling of layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("readonly", "no such layer 'readonly', did you mean 'read-only'?"),
        ("?", "no such layer '?'; there are read-only, delay, error, throttle, overlay"),
        ("delay,read", "delay,read: 'read' is not key=value"),
        ("delay,read=1s,read=2s", "delay,read=1s,read=2s: read is given twice"),
        ("delay,raed=1s", "delay: no such key 'raed', did you mean 'read'?"),
        ("read-only,x=1", "read-only: no such key 'x'; it has none"),
        (
            "delay,read=10",
            "delay: read: '10' is not a time: use ns, us, ms, s or m, for example 10ms or 0.5s",
        ),
        ("error,ops=read+wirte", "error: ops: no such operation 'wirte', did you mean 'write'?"),
        ("error,errno=enospce", "error: errno: no such error 'enospce', did you mean 'ENOSPC'?"),
        (
            "error,rate=2",
            "error: rate: '2' is not a share: use 0 to 1 or 0% to 100%, for example 0.1 or 10%",
        ),
        ("error,length=0", "error,length=0: a range of 0 bytes at 0: empty, or past 2^64"),
        ("error,errno=5000", "error,errno=5000: 5000 is no errno"),
        ("throttle", "throttle: give a limit, as in throttle,iops=1000"),
        ("delay", "delay: give a time, as in delay,read=10ms"),
        ("throttle,iosp=1", "throttle: no such key 'iosp', did you mean 'iops'?"),
        ("throttle,iops=0", "throttle,iops=0: iops-total: 0 is not a number above 0"),
        (
            "throttle,bps-read-max=1M",
            "throttle,bps-read-max=1M: bps-read-max: needs bps-read, and not to be below it",
        ),
        (
            "throttle,bps=1M,bps-total=2M",
            "throttle,bps=1M,bps-total=2M: bps is short for bps-total: give one of them",
        ),
        (
            "throttle,bps=1X",
            "throttle: bps: '1X' is not a size: use a whole number of bytes, or of k, M, G, T "
            "(1k = 1024), for example 512, 4k or 1G",
        ),
        ("delay,seed=x", "delay: seed: 'x' is not a whole number below 2^64"),
        (
            "delay,read=2s..1s",
            "delay,read=2s..1s: a delay from 2 to 1 seconds: the longer comes second",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(layer: str, message: str) -> None:
    with pytest.raises(BackendError) as error:
        open_backend("memory", size=1 << 20, layers=[layer])
    assert str(error.value) == message


def test_layers_go_on_in_the_order_given_and_close_what_lies_beneath(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    backend = open_backend(str(image), layers=["delay,all=1ms,write=1ms..2ms,seed=1", "read-only"])
    assert backend.read_only
    backend.close()
    # Unlocked: it can be opened for writing.
    open_backend(str(image)).close()
