"""vhost-user: a VMM's way to a device bound to vhost_vdpa, its memory used in place.

:class:`VhostUserServer` serves front ends, from wherever they come: :class:`Listening` or
:class:`Connecting`.
"""

from vduse.exports.vhost_user.front_ends import Connecting, Listening
from vduse.exports.vhost_user.server import VhostUserServer

__all__ = ["Connecting", "Listening", "VhostUserServer"]
