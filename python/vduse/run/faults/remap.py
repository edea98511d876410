"""The IOTLB changes under load, and what lies at each address does not."""

from __future__ import annotations

import threading

from vduse.run.faults.kind import Kind, Values
from vduse.run.faults.target import Target


class Remap:
    """Large entries are cut in two and put together again, each with an UPDATE_IOTLB, with
    requests in flight: a vhost_vdpa user's memory has as many entries as it has pieces. Under
    virtio_vdpa idle bounce pages are taken away as well, as memory pressure does."""

    def __init__(self, _values: Values) -> None:
        """No state."""

    def strike(self, target: Target, _stop: threading.Event) -> str:
        target.check_live()
        freed = target.device.reclaim() if target.driver == "virtio_vdpa" else 0
        entries = target.vdpa.cut_iotlb()
        return (
            f"{entries} IOTLB entries cut in two and joined, {freed >> 10} KiB of idle bounce "
            "pages reclaimed"
        )


KIND = Kind(
    name="remap",
    summary="IOTLB entries are cut and joined under load, idle bounce pages are reclaimed",
    clients="nothing, unless the daemon unmaps what requests in flight use",
    make=Remap,
)
