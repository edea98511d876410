"""virtio-blk (virtio 1.3, section 5.2) on a native data path and a backend."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from vduse import _native
from vduse.backends.python import PythonBackend
from vduse.channel.base import Resolver
from vduse.control.features import BlkFeature, DeviceId, Feature
from vduse.control.statistics import DeviceStats
from vduse.device.control_thread import ControlThread
from vduse.device.device import DRAIN_TIMEOUT, Device, DeviceError
from vduse.device.spec import DeviceSpec
from vduse.device.within import within
from vduse.device.workers import shared_pool
from vduse.devices.blk_config import SECTOR, BlkConfig, pack_capacity
from vduse.devices.features import REQUIRED, check_features
from vduse.devices.life import DeviceLife

log = logging.getLogger(__name__)

#: Bytes of the longest segment offered (SIZE_MAX).
SIZE_MAX = 4 << 20
#: Most data segments of a request, where the virtqueue has room for as many (SEG_MAX).
SEG_MAX = 254
#: Most sectors and segments of a discard or a write zeroes.
MAX_RANGE_SECTORS = 1 << 22
MAX_RANGE_SEGMENTS = 16
#: Bytes of VIRTIO_BLK_T_GET_ID.
SERIAL_BYTES = 20

#: What the file systems of today lay out by, bytes.
_PHYSICAL_BLOCK = 4096
#: A read takes a header, one segment and a status.
_SMALLEST_QUEUE = 4
_LARGEST_QUEUE = 1 << 15
#: Bytes of the largest logical block, as QEMU has it.
_LARGEST_BLOCK = 2 << 20


def check_queue_size(size: int) -> None:
    """ValueError: no virtqueue of a disk has that."""
    is_power = size & (size - 1) == 0
    if not (is_power and _SMALLEST_QUEUE <= size <= _LARGEST_QUEUE):
        raise ValueError(
            f"queue_size: {size} is not a power of two "
            f"between {_SMALLEST_QUEUE} and {_LARGEST_QUEUE}"
        )


def check_serial(serial: str) -> None:
    """ValueError: VIRTIO_BLK_T_GET_ID cannot tell it."""
    if not serial.isascii() or len(serial) > SERIAL_BYTES:
        raise ValueError(f"serial: {serial!r} is not at most {SERIAL_BYTES} ASCII characters")


def check_block_size(size: int) -> None:
    """ValueError: no logical block has that."""
    is_power = size & (size - 1) == 0
    if not (is_power and SECTOR <= size <= _LARGEST_BLOCK):
        raise ValueError(
            f"block_size: {size} is not a power of two between {SECTOR} and {_LARGEST_BLOCK}"
        )


def offered_features(*, read_only: bool, can_discard: bool, queues: int, packed: bool) -> int:
    """What a block device offers. Never CONFIG_WCE: VDUSE refuses it."""
    features = int(REQUIRED | Feature.INDIRECT_DESC | Feature.EVENT_IDX)
    features |= BlkFeature.SIZE_MAX | BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE
    features |= BlkFeature.TOPOLOGY | BlkFeature.FLUSH
    if packed:
        features |= Feature.RING_PACKED
    if queues > 1:
        features |= BlkFeature.MQ
    if read_only:
        features |= BlkFeature.RO
    else:
        features |= BlkFeature.WRITE_ZEROES
        if can_discard:
            features |= BlkFeature.DISCARD
    return int(features)


def config_space(
    *, size: int, block_size: int, features: int, queues: int, queue_size: int
) -> BlkConfig:
    """The config space for a backend of ``size`` bytes in blocks of ``block_size``."""
    discard = bool(features & BlkFeature.DISCARD)
    write_zeroes = bool(features & BlkFeature.WRITE_ZEROES)
    block_sectors = block_size // SECTOR
    physical_blocks = max(1, _PHYSICAL_BLOCK // block_size)
    return BlkConfig(
        capacity=size // block_size * block_sectors,
        size_max=SIZE_MAX,
        # The header and the status take two descriptors.
        seg_max=min(SEG_MAX, queue_size - 2),
        blk_size=block_size,
        physical_block_exp=physical_blocks.bit_length() - 1,
        min_io_size=physical_blocks,
        num_queues=queues,
        max_discard_sectors=MAX_RANGE_SECTORS if discard else 0,
        max_discard_seg=MAX_RANGE_SEGMENTS if discard else 0,
        discard_sector_alignment=block_sectors if discard else 0,
        max_write_zeroes_sectors=MAX_RANGE_SECTORS if write_zeroes else 0,
        max_write_zeroes_seg=MAX_RANGE_SEGMENTS if write_zeroes else 0,
        write_zeroes_may_unmap=int(discard),
    )


def data_path_limits(config: BlkConfig, *, read_only: bool) -> dict[str, int]:
    """What the native data path holds a driver to, under the config space's names.

    ``read_only``: writes are refused even of a driver that did not accept RO (5.2.6.2)."""
    return {
        "read_only": int(read_only),
        "capacity": config.capacity,
        "seg_max": config.seg_max,
        "size_max": config.size_max,
        "blk_size": config.blk_size,
        "max_discard_sectors": config.max_discard_sectors,
        "max_discard_seg": config.max_discard_seg,
        "discard_sector_alignment": config.discard_sector_alignment,
        "max_write_zeroes_sectors": config.max_write_zeroes_sectors,
        "max_write_zeroes_seg": config.max_write_zeroes_seg,
        "write_zeroes_may_unmap": config.write_zeroes_may_unmap,
    }


class BlkDevice(DeviceLife):
    """A disk: a backend offered as a virtio-blk device.

    Without ``pool`` the process's own serves; a backend written in Python is served by a worker of
    the device's own, so that a slow one delays nobody else. The backend and a pool that is given
    stay the caller's; both are closed after the device. A resize of the backend that the backend
    tells of is passed on to the driver.
    """

    def __init__(
        self,
        name: str,
        backend: _native.Backend | PythonBackend,
        *,
        queues: int = 1,
        queue_size: int = 128,
        packed: bool = False,
        read_only: bool = False,
        serial: str = "",
        block_size: int | None = None,
        discard: bool = True,
        pool: _native.Pool | None = None,
        thread: ControlThread | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        api_version: int = 0,
        umem: bool = False,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        """``packed`` offers packed virtqueues; the driver chooses. A read-only backend makes a
        read-only device. ``block_size``: bytes of a logical block, by default the backend's;
        ``discard`` False: DISCARD is not offered, whatever the backend can. ``drain_timeout``:
        seconds that a stop, a reset or the last flush may take. ``umem``: pages of this process
        take the place of the bounce pages, where the kernel and RLIMIT_MEMLOCK allow it
        (docs/kernel.md); why not, is in the log. ``failed``: as of
        :class:`~vduse.device.device.Device`.
        ValueError: name, queues, queue_size, serial, block_size, drain_timeout or api_version out
        of range."""
        if isinstance(backend, PythonBackend):
            backend = backend.native
        if not 1 <= queues <= 0xFFFF:
            raise ValueError(f"queues: {queues} is not between 1 and 65535")
        check_queue_size(queue_size)
        check_serial(serial)
        self._serial = serial.encode("ascii")
        if block_size is None:
            block_size = backend.block_size
        check_block_size(block_size)
        if drain_timeout < 0:
            raise ValueError(f"drain_timeout: {drain_timeout} is negative")
        self._drain_timeout = drain_timeout
        self._read_only = read_only or backend.read_only
        self._umem = umem
        features = offered_features(
            read_only=self._read_only,
            can_discard=discard and backend.can_discard,
            queues=queues,
            packed=packed,
        )
        self._config = config_space(
            size=backend.size,
            block_size=block_size,
            features=features,
            queues=queues,
            queue_size=queue_size,
        )
        #: The capacity that the driver knows.
        self._sectors = self._config.capacity
        #: Guards the capacity, and which backend there is.
        self._changing = threading.Lock()
        self._backend = backend
        self._paused = False
        self._own_pool: _native.Pool | None = None
        if pool is None and backend.engine == "python":
            pool = self._own_pool = _native.Pool(1)
        self._pool = pool
        self._data_path: _native.BlkDataPath | None = None
        self._device = Device(
            DeviceSpec(
                name=name,
                device_id=DeviceId.BLOCK,
                features=features,
                queue_sizes=(queue_size,) * queues,
                config=self._config.pack(),
                check_features=lambda chosen: check_features(features, chosen, DeviceId.BLOCK),
                api_version=api_version,
            ),
            self._make_data_path,
            resized=self._resized,
            failed=failed,
            thread=thread,
            drain_timeout=drain_timeout,
        )

    @property
    def backend(self) -> _native.Backend:
        """What stores its bytes."""
        return self._backend

    @property
    def data_path(self) -> _native.BlkDataPath | None:
        """What serves it; None before the start and after the end."""
        return self._data_path

    @property
    def size(self) -> int:
        """Bytes that the driver knows."""
        return self._sectors * SECTOR

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes."""
        return self._read_only

    @property
    def paused(self) -> bool:
        """Whether it has no backend: see :meth:`pause`."""
        return self._paused

    @property
    def pool(self) -> _native.Pool:
        """The workers that serve it."""
        return self._pool or shared_pool()

    @property
    def first_worker(self) -> int:
        """That of virtqueue 0; see :attr:`_native.DataPath.first_worker`. 0 before the start."""
        return self._data_path.first_worker if self._data_path is not None else 0

    def resize(self) -> int:
        """Looks at the backend's size again, and tells the driver; bytes. From any thread. OSError
        EINVAL: a size that no disk has."""
        with self._changing:
            if self._paused:
                return self.size
            sectors = self._whole_sectors(self._backend.refresh_size())
            if self._data_path is not None and sectors != self._sectors:
                # First the data path: the driver may use what it is told at once.
                self._data_path.set_capacity(sectors)
                self._device.set_config(0, pack_capacity(sectors))
                self._sectors = sectors
            return sectors * SECTOR

    def pause(self) -> None:
        """Completes what was taken, flushes, and lets go of the backend, which may be closed then.
        What the driver asks for waits until :meth:`resume`. From any thread. DeviceError: requests
        do not end within ``drain_timeout``; OSError: the flush failed, or took as long. Then all
        goes on as before."""
        with self._changing:
            data_path = self._started()
            if not data_path.pause(self._drain_timeout):
                raise DeviceError(
                    f"{self.name}: requests are still in flight after {self._drain_timeout:g} s"
                )
            try:
                self._flush()
            except OSError:
                data_path.resume(self._backend)
                raise
            self._paused = True

    def resume(self, backend: _native.Backend) -> None:
        """After :meth:`pause`: goes on with ``backend``, and tells the driver of another size. What
        was offered at the start (features, block size) stays. DeviceError; OSError: virtqueues
        cannot work on it. Then it is still paused."""
        with self._changing:
            data_path = self._started()
            sectors = self._whole_sectors(backend.size)
            # Before anything is served: requests are held to what there is.
            data_path.set_capacity(sectors)
            try:
                data_path.resume(backend)
            except OSError:
                data_path.set_capacity(self._sectors)
                if not data_path.pause(self._drain_timeout):
                    raise DeviceError(f"{self.name}: its backends cannot be exchanged") from None
                raise
            self._backend, self._paused = backend, False
            if sectors != self._sectors:
                self._sectors = sectors
                try:
                    self._device.set_config(0, pack_capacity(sectors))
                except (DeviceError, OSError) as error:
                    self._not_told(error)

    def _started(self) -> _native.BlkDataPath:
        """DeviceError."""
        if self._data_path is None:
            raise DeviceError(f"{self.name} is not started")
        return self._data_path

    def _whole_sectors(self, size: int) -> int:
        block = self._config.blk_size
        return size // block * (block // SECTOR)

    def stats(self) -> DeviceStats | None:
        """What was counted (docs/statistics.md); None before the start and after the end."""
        data_path = self._data_path
        try:
            return data_path.stats() if data_path is not None else None
        except ValueError:  # closed meanwhile
            return None

    def close(self, *, destroy: bool = False) -> None:
        """Drains, closes the node, flushes the backend unless read-only. The device stays, for
        whoever takes it over, unless it is to be destroyed. DeviceError: requests do not end, or
        the device's own handler calls. Closed, but: OSError EBUSY, on the vDPA bus and not
        destroyed; TimeoutError, the flush has not ended within ``drain_timeout``."""
        self._device.close()
        self._data_path = None
        if self._own_pool is not None:
            # EBUSY: an export uses it still; it ends with that.
            with contextlib.suppress(OSError):
                self._own_pool.close()
        try:
            # A backend that it let go of was flushed.
            if not self._paused:
                self._flush()
        finally:
            if destroy:
                self._device.destroy()

    def _flush(self) -> None:
        """OSError."""
        if not self._read_only:
            what = f"{self.name}: the backend's flush"
            within(self._drain_timeout, self._backend.flush, what)

    def _resized(self) -> None:
        try:
            self.resize()
        except (DeviceError, OSError, ValueError) as error:
            self._not_told(error)

    def _not_told(self, error: Exception) -> None:
        log.info(
            "%s: resized, but not told the driver: %s",
            self.name,
            error,
            extra={"device": self.name},
        )

    def _make_data_path(self, resolver: Resolver) -> _native.BlkDataPath:
        limits = data_path_limits(self._config, read_only=self._read_only)
        self._data_path = _native.BlkDataPath(
            self.pool, self._backend, resolver, limits, self._serial, self._umem
        )
        return self._data_path
