"""Creates a device and opens its node, or takes over the one that a dead program left."""

from __future__ import annotations

import errno

from vduse.channel.base import Channel, ControlPort
from vduse.device.spec import DeviceSpec


class ConfigMismatch(RuntimeError):
    """The device that is there was created with another configuration."""


def create_or_open(control: ControlPort, spec: DeviceSpec) -> tuple[Channel, bool]:
    """The open node, and whether the device was there already.

    A new device's virtqueues are set up here. Where this process may not create it, somebody else
    may have: then its node is enough. OSError: EINVAL, EPERM (CREATE refused), ENOENT, EACCES (no
    control node, or not for us, and no such device), EBUSY (another program has the node open).
    ConfigMismatch.
    """
    try:
        _set_api_version(control, spec.api_version)
        control.create_dev(spec.dev_config())
    except FileExistsError:
        return _open_existing(control, spec), True
    except (FileNotFoundError, PermissionError) as refused:
        try:
            return _open_existing(control, spec), True
        except FileNotFoundError:
            raise refused from None
    try:
        channel = control.open(spec.name)
        try:
            for index, size in enumerate(spec.queue_sizes):
                channel.vq_setup(index, size)
        except BaseException:
            channel.close()
            raise
    except BaseException:
        control.destroy_dev(spec.name)
        raise
    return channel, False


def _open_existing(control: ControlPort, spec: DeviceSpec) -> Channel:
    channel = control.open(spec.name)
    try:
        _expect_same(channel, spec)
    except BaseException:
        channel.close()
        raise
    return channel


def _set_api_version(control: ControlPort, version: int) -> None:
    try:
        control.set_api_version(version)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        text = f"the framework does not know API version {version}"
        raise OSError(errno.EINVAL, text) from error


def _expect_same(channel: Channel, spec: DeviceSpec) -> None:
    """The framework tells neither config space nor features back: what can be seen is the
    number of virtqueues and whether the config space has room for ours."""
    try:
        for index in range(len(spec.queue_sizes)):
            channel.vq_get_info(index)
        if _has_virtqueue(channel, len(spec.queue_sizes)):
            raise _mismatch(spec)
        # Last: what is refused has changed nothing.
        if spec.config:
            channel.dev_set_config(0, spec.config)
    except OSError as error:
        if error.errno == errno.EPERM:
            text = f"device {spec.name} is broken for good: destroy it, then start it again"
            raise PermissionError(errno.EPERM, text) from error
        if error.errno != errno.EINVAL:
            raise
        raise _mismatch(spec) from error


def _has_virtqueue(channel: Channel, index: int) -> bool:
    try:
        channel.vq_get_info(index)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _mismatch(spec: DeviceSpec) -> ConfigMismatch:
    return ConfigMismatch(
        f"device {spec.name} exists with other virtqueues or another config space: "
        "destroy it, or start it as it was"
    )
