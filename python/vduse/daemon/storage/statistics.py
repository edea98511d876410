"""What is counted of a node's exports, under QEMU's names."""

from __future__ import annotations

from collections.abc import Iterable

from vduse.daemon.storage.exports.export import Export
from vduse.daemon.storage.models import BlockDeviceStats, BlockStats


def total(node_name: str, exports: Iterable[Export]) -> BlockStats:
    """Of ``exports``, which are those of a node, together."""
    found = [stats for export in exports if (stats := export.stats()) is not None]
    return BlockStats(
        node_name=node_name,
        stats=BlockDeviceStats(
            rd_bytes=sum(each["bytes_read"] for each in found),
            wr_bytes=sum(each["bytes_written"] for each in found),
            rd_operations=sum(each["latency_ns"]["read"]["count"] for each in found),
            wr_operations=sum(each["latency_ns"]["write"]["count"] for each in found),
            flush_operations=sum(each["latency_ns"]["flush"]["count"] for each in found),
            other_operations=sum(
                each["latency_ns"]["discard"]["count"] + each["latency_ns"]["other"]["count"]
                for each in found
            ),
            failed_operations=sum(each["errors"] for each in found),
        ),
    )
