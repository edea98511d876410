"""What differs between the kernels whose VDUSE this framework plays."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from vduse.control.features import DeviceId


@dataclass(frozen=True, slots=True)
class Profile:
    """One kernel's behaviour: that of its newest stable releases."""

    name: str
    #: Newest API version of /dev/vduse/control.
    api_version: int
    #: Virtio device ids that CREATE_DEV takes.
    device_ids: frozenset[int]
    #: Most IOTLB entries of a vhost_vdpa device; None: no limit.
    max_iotlb_entries: int | None
    #: IOTLB_GET_INFO's errno for a bad reserved field or address space.
    iova_info_errno: int


LINUX_6_12 = Profile(
    name="6.12",
    api_version=0,
    device_ids=frozenset({DeviceId.NET, DeviceId.BLOCK}),
    max_iotlb_entries=None,
    iova_info_errno=errno.EINVAL,
)
LINUX_7_2 = Profile(
    name="7.2",
    api_version=1,
    device_ids=frozenset({DeviceId.NET, DeviceId.BLOCK, DeviceId.FS}),
    max_iotlb_entries=2048,
    iova_info_errno=errno.EFAULT,
)

PROFILES = {profile.name: profile for profile in (LINUX_6_12, LINUX_7_2)}


def find_profile(name: str) -> Profile:
    """ValueError: no such profile."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise ValueError(f"no profile {name!r}: choose one of {known}") from None
