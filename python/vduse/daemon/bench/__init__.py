"""`vduse bench`: a load on the disk behind a vhost-user socket, ours or another's."""
