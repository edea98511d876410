"""vhost-user: a VMM's way to a device bound to vhost_vdpa, its memory used in place.

:class:`VhostUserServer` is what there is to use.
"""

from vduse.exports.vhost_user.server import VhostUserServer

__all__ = ["VhostUserServer"]
