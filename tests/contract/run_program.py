"""A device program on the kernel's channel, /dev/vduse, which `vduse run` gives it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

from tests.contract.kernel_program import BlockSpec, KernelNode, KernelProgram
from tests.contract.local_program import LocalNode
from vduse.channel.kernel import DIRECTORY
from vduse.daemon.storage.daemon import Daemon


class RunNode(KernelNode):
    """The bounce pages' file is one that tells its blocks."""

    allocated = LocalNode.allocated


class RunProgram(KernelProgram):
    """Its block devices with split virtqueues on a file are `vduse storage-daemon`'s."""

    def __init__(self, records: str) -> None:
        """``records``: where in-flight records are kept."""
        super().__init__(records=records, node=RunNode)

    def control_mode(self) -> int:
        """Permission bits of the control node."""
        return stat.S_IMODE(os.stat(os.path.join(DIRECTORY, "control")).st_mode)

    def _block_device(self, spec: BlockSpec) -> AbstractContextManager[object]:
        if spec.packed or spec.backend == "memory":
            return super()._block_device(spec)
        return self._storage_daemon(spec)

    @contextmanager
    def _storage_daemon(self, spec: BlockSpec) -> Iterator[None]:
        node = f"driver=file,filename={spec.backend},node-name=image"
        export = (
            f"type=vduse-blk,id=export,node-name=image,name={spec.name},writable=on,"
            f"num-queues={spec.queues},queue-size={spec.queue_size}"
        )
        with closing(Daemon(self.control, [("blockdev", node), ("export", export)])):
            yield
