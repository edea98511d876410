"""The types there are: a row more, and the command line, QMP, --check and the documentation have
it."""

from __future__ import annotations

from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd import NbdOptions
from vduse.daemon.storage.exports.vduse_blk import VduseBlkOptions
from vduse.daemon.storage.exports.vhost_user_blk import VhostUserBlkOptions

TYPES: tuple[type[ExportOptions], ...] = (VduseBlkOptions, VhostUserBlkOptions, NbdOptions)
