"""A daemon's metrics, served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vduse.daemon.errors import UserError
from vduse.daemon.watch.collect import Watched, collect
from vduse.daemon.watch.endpoint import MetricsEndpoint
from vduse.daemon.watch.exposition import Metrics
from vduse.daemon.watch.options import host_and_port
from vduse.exports.errors import ExportError
from vduse.exports.listen import Listener, UnixListener
from vduse.exports.listen_tcp import TcpListener

#: Who may write the socket may read the metrics: no secrets, and a scraper is another user.
_MODE = 0o660


@contextmanager
def metrics_served(address: str | None, watched: Watched) -> Iterator[None]:
    """Those of ``watched``, as long as this lasts; None: they are not. UserError."""
    if address is None:
        yield
        return
    metrics = Metrics(lambda: collect(watched, buckets=True))
    try:
        listener = _listener(address)
    except ExportError as error:
        raise UserError(f"metrics: {error}") from None
    endpoint = MetricsEndpoint(listener, metrics.text)
    try:
        yield
    finally:
        endpoint.close()


def _listener(address: str) -> Listener:
    if address.startswith("unix:"):
        return UnixListener(address.removeprefix("unix:"), _MODE)
    return TcpListener(*host_and_port(address))
