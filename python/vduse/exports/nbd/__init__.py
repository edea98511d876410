"""NBD: listening and the handshake, in Python; the transmission phase is
:class:`vduse._native.NbdExport`. Source: the NBD protocol document (doc/proto.md of the NBD
project)."""

from vduse.exports.nbd.server import NbdServer

__all__ = ["NbdServer"]
