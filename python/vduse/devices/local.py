"""A block device in this process, from its backend's name to its last flush."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from vduse import _native
from vduse.backends.python import PythonBackend
from vduse.backends.spec import open_backend
from vduse.channel.base import ControlPort
from vduse.device.device import DRAIN_TIMEOUT
from vduse.device.within import within
from vduse.device.workers import shared_pool
from vduse.devices.blk import BlkDevice


@contextmanager
def local_blk(
    control: ControlPort,
    name: str,
    backend: str | _native.Backend | PythonBackend,
    *,
    size: int | None = None,
    direct: bool = False,
    layers: Sequence[str] = (),
    queues: int = 1,
    queue_size: int = 128,
    packed: bool = False,
    read_only: bool = False,
    serial: str = "",
    umem: bool = False,
    pool: _native.Pool | None = None,
    drain_timeout: float = DRAIN_TIMEOUT,
    destroy: bool = False,
) -> Iterator[BlkDevice]:
    """A device that is started; at the end it drains, is destroyed if ``destroy``, and its backend
    is flushed and closed, each within ``drain_timeout``. A backend that is open already stays the
    caller's; ``size``, ``direct`` and ``layers`` are not for it.

    At the end what :meth:`~vduse.devices.blk.BlkDevice.close` raises. At the start
    BackendError and what :func:`~vduse.backends.spec.open_backend` takes; ValueError, OSError and
    what :class:`~vduse.devices.blk.BlkDevice` takes."""
    with ExitStack() as exits:
        opened = backend
        if isinstance(opened, str):
            opened = open_backend(
                opened,
                size=size,
                read_only=read_only,
                direct=direct,
                layers=layers,
                pool=shared_pool if pool is None else lambda: pool,
            )
            exits.callback(within, drain_timeout, opened.close, f"{backend}: the backend's end")
        device = BlkDevice(
            name,
            opened,
            queues=queues,
            queue_size=queue_size,
            packed=packed,
            read_only=read_only,
            serial=serial,
            umem=umem,
            pool=pool,
            drain_timeout=drain_timeout,
        )
        device.start(control)
        exits.callback(device.close, destroy=destroy)
        yield device
