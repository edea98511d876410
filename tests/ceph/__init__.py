"""Backend ``rbd`` on a real Ceph: one node of Debian's packages, on loopback, made from nothing."""
