"""A RAM disk for nbdkit's Python plugin: API version 2, which fills nbdkit's buffers in place, and
a memoryview, which saves a copy. With ``parallel=1`` requests do not wait for one another."""

import nbdkit

API_VERSION = 2

_disk = memoryview(bytearray())
_model = nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS


def config(key, value):
    """Parameters: ``size``, ``parallel``."""
    global _disk, _model
    match key:
        case "size":
            _disk = memoryview(bytearray(nbdkit.parse_size(value)))
        case "parallel":
            _model = nbdkit.THREAD_MODEL_PARALLEL
        case _:
            raise RuntimeError(f"unknown parameter {key}")


def thread_model():
    """The default unless asked otherwise."""
    return _model


def open(readonly):
    """One handle for all."""
    return 1


def get_size(handle):
    """Bytes."""
    return len(_disk)


def pread(handle, buffer, offset, flags):
    """Into nbdkit's buffer."""
    buffer[:] = _disk[offset : offset + len(buffer)]


def pwrite(handle, buffer, offset, flags):
    """From nbdkit's buffer."""
    _disk[offset : offset + len(buffer)] = buffer
