"""The Rust half. Control calls only: no request of the data path passes through here, except
those a Python program itself submits to a disk (:class:`BlkDriver`)."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, final

from typing_extensions import Buffer, disjoint_base

from vduse.control.statistics import ConnectionState, DeviceStats, DriverStats

__all__ = [
    "Arena",
    "Backend",
    "BlkDataPath",
    "BlkDriver",
    "CallSocket",
    "Chain",
    "ChainBatch",
    "ChainDataPath",
    "DataPath",
    "Domain",
    "Faults",
    "IoBatch",
    "IoRequest",
    "IrqGate",
    "KernelNode",
    "KickRelay",
    "NbdControl",
    "NbdExport",
    "NbdFacts",
    "NbdTls",
    "NodeCall",
    "Pool",
    "PythonBackend",
    "Supervised",
    "Throttle",
    "VirtioDriver",
    "Virtqueue",
    "VqLine",
    "copy_baseline",
    "end_calls",
    "entropy_virtio_drivers",
    "layer_delay",
    "layer_error",
    "layer_overlay",
    "layer_read_only",
    "layer_throttle",
    "load_ours",
    "load_virtio_drivers",
    "nbd_backend",
    "qcow2_backend",
    "qcow2_layer",
    "rbd_backend",
    "vhost_frontend",
]

# --- channel -----------------------------------------------------------------------------

@final
class CallSocket:
    """One end of a call socket of the embedded channel; also resolves IOTLB misses for the
    data path. A call and its answer are one exclusive exchange, made with the GIL released.

    Takes ownership of ``fd``. Wire format: see docs/channel.md.
    """

    def __new__(cls, fd: int) -> Self: ...
    def call(
        self, nr: int, payload: bytes = ..., fds: Sequence[int] = ...
    ) -> tuple[int, bytes, list[int]]:
        """Result (>= 0) or -errno, answer bytes, answer fds (caller owns; close-on-exec).

        Raises ConnectionResetError when the other end is gone, TimeoutError when it did not
        answer within 30 seconds, OSError EPROTO for an answer that is none (the socket is
        dead after each of these), EMSGSIZE for more than 8184 bytes or 2 fds, ValueError
        after close.
        """
    def fileno(self) -> int: ...
    def start_counting(self) -> None:
        """Counts what the data path calls from now on. Idempotent."""
    def counts(self) -> dict[tuple[int, int], int]:
        """What the data path has called: ioctl number and errno (0: success), how often."""
    def close(self) -> None: ...

@final
class KernelNode:
    """An open /dev/vduse/NAME; also resolves IOTLB misses and injects irqs for the data path, by
    ioctl. Takes ownership of ``fd``."""

    def __new__(cls, fd: int, api_version: int) -> Self: ...
    def fileno(self) -> int:
        """The fd, for poll, read, write and all other ioctls. ValueError after close."""
    def start_counting(self) -> None:
        """Counts what the data path calls from now on. Idempotent."""
    def counts(self) -> dict[tuple[int, int], int]:
        """What the data path has called: ioctl number and errno (0: success), how often."""
    def close(self) -> None:
        """Closes the node, though a data path may still hold it: its misses and irqs fail."""

# --- framework ---------------------------------------------------------------------------

@final
class Domain:
    """IOVA domain of virtio_vdpa: one anonymous file, bounce pages below ``bounce_size``,
    coherent memory above."""

    def __new__(cls, bounce_size: int) -> Self: ...
    @property
    def fd(self) -> int:
        """The anonymous file (owned by the domain: dup before giving it away)."""
    @property
    def bounce_size(self) -> int: ...
    @property
    def bounce_mapped(self) -> bool:
        """Whether the bounce entry exists (a first buffer was mapped since the last reset)."""
    def entries(self) -> list[tuple[int, int, int, int]]:
        """IOTLB entries as (start, last, offset in fd, perm), ordered by start."""
    def reset_bounce_map(self) -> None:
        """Device reset: the bounce entry goes, coherent ones stay."""
    def reg_umem(self, pid: int, uaddr: int) -> None:
        """The bounce pages become ``bounce_size`` bytes at ``uaddr`` of process ``pid``; live
        data is copied. OSError EEXIST, EINVAL (nothing mapped yet), or as process_vm_writev."""
    def dereg_umem(self) -> None:
        """Back to the domain's own pages; live data is copied. OSError ENOENT."""
    def reclaim(self, max_bytes: int | None = None) -> int:
        """Gives idle bounce chunks back to the system, from the top; bytes freed."""
    def stats(self) -> dict[str, int]:
        """``bounce_bytes_in_use``, ``bounce_bytes_allocated``, ``bounce_bytes_peak``,
        ``bounce_bytes_reclaimed``, ``coherent_bytes``, ``maps``, ``map_waits``."""

@final
class Arena:
    """A driver's own memory, shared by fd: no bounce, no copy (the vhost_vdpa way)."""

    def __new__(cls, size: int, iova: int) -> Self: ...
    @property
    def fd(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def iova(self) -> int:
        """IOVA of the arena's first byte."""
    def read(self, offset: int, length: int) -> bytes:
        """ValueError out of range."""
    def write(self, offset: int, data: Buffer) -> None:
        """ValueError out of range."""
    def truncate(self, size: int) -> None:
        """Shrinks the file under everybody's mapping (hostile tests)."""

@final
class VqLine:
    """Framework's end of one virtqueue's kick and irq. Lives as long as the device; the
    kick eventfd behind it changes hands when a device is replaced."""

    def __new__(cls) -> Self: ...
    def set_kickfd(self, fd: int) -> None:
        """Takes a dup of an eventfd; -1 deassigns. OSError EBADF/EINVAL for no eventfd."""
    def set_ready(self, ready: bool) -> None:
        """Kicks are dropped while the virtqueue is not ready. A new line is ready."""
    def kick(self) -> None:
        """Signals the kick eventfd; without one, remembers it in ``kicked``."""
    @property
    def kicked(self) -> bool: ...
    def clear_kicked(self) -> None: ...
    @property
    def callfd(self) -> int:
        """The fd that an irq signals now (owned by the line)."""
    def set_callfd(self, fd: int) -> None:
        """Irqs go to a dup of this fd (an eventfd, a pipe or a unix socket, made O_NONBLOCK);
        -1: back to the line's own eventfd."""
    def inject(self) -> None:
        """Signals the call fd, if it has room (docs/decisions, note 8); runs nothing of the
        driver's on this stack."""
    def stats(self) -> dict[str, int]:
        """``kicks`` and ``irqs`` (those injected here)."""

@final
class IrqGate:
    """The irqs of one device: whether VDUSE_VQ_INJECT_IRQ is taken, and the lines it goes to. Made
    before DRIVER_OK; may be used from any thread."""

    def __new__(cls, lines: Sequence[VqLine]) -> Self:
        """``lines``: those of all virtqueues, by index."""
    def set_driver_ok(self, driver_ok: bool) -> None:
        """Whether DRIVER_OK is in the device's status."""
    def set_broken(self) -> None:
        """The device is broken, for good."""
    def inject(self, index: int) -> None:
        """Signals the driver of a ready virtqueue; nothing where it is not ready. OSError EPERM:
        the device is broken; EINVAL: no such virtqueue, or before DRIVER_OK, unless the driver has
        given an eventfd of its own and the virtqueue is ready."""

@final
class KickRelay:
    """Kick eventfds of drivers in other hands: every signal becomes a kick of a line, on one
    thread for all of them, without the GIL. The eventfds are never read."""

    def __new__(cls) -> Self: ...
    def watch(self, fd: int, line: VqLine) -> int:
        """Takes a dup of ``fd``; what to call :meth:`unwatch` with. A signal from before
        counts. OSError EBADF, EINVAL (no eventfd)."""
    def unwatch(self, watch: int) -> None:
        """Ends a watch. A kick that is under way may still arrive."""
    def close(self) -> None:
        """Ends the thread and all watches; ValueError from then on."""

@final
class BlkDriver:
    """The driver's side of virtio-blk: the rings, the requests, the bounce copies.

    Offsets and lengths are bytes and must be multiples of 512. Methods may be called from any
    thread and wait with the GIL released; OSError EIO, EOPNOTSUPP (ENOTSUP), EROFS, ENODEV
    (after :meth:`stop`), EINVAL.
    """

    def __new__(
        cls,
        dma: Domain | Arena,
        features: int,
        config: bytes,
        queue_sizes: Sequence[int],
        lines: Sequence[VqLine],
    ) -> Self: ...
    def areas(self, index: int) -> tuple[int, int, int]:
        """IOVAs of the descriptor, driver and device areas."""
    def start(self) -> None:
        """After DRIVER_OK."""
    def stop(self, errno: int) -> None:
        """After reset: every outstanding and later request ends with ``errno``."""
    def hold(self, submissions: bool, completions: bool) -> None:
        """Until the next call, requests wait here and the device gets no more (``submissions``),
        used entries and irqs are not looked at (``completions``), or both. Programs that wait for
        their requests go on waiting."""
    def in_flight(self) -> int:
        """Requests that the device has now. Takes completions, unless they are held."""
    def renew(self) -> None:
        """After a reset was answered, with both held since before it: the queues anew
        (:meth:`areas`). Once the device is live and the hold ends, it gets all requests that it
        has not answered. OSError: no memory; :meth:`stop` it."""
    def set_config(self, config: bytes) -> None:
        """After a config interrupt."""
    @property
    def size(self) -> int:
        """Bytes."""
    @property
    def read_only(self) -> bool: ...
    @property
    def features(self) -> int:
        """The negotiated feature bits."""
    def preadinto(self, offset: int, buffer: Buffer) -> int: ...
    def pwrite(self, offset: int, data: Buffer) -> int: ...
    def flush(self) -> None: ...
    def discard(self, offset: int, length: int) -> None: ...
    def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None: ...
    def serial(self) -> bytes:
        """VIRTIO_BLK_T_GET_ID, up to 20 bytes."""
    def submit(self, batch: Sequence[tuple[str, int, Any]]) -> list[int]:
        """Requests ``(op, offset, buffer or length)``, op one of read, write, flush, discard,
        write_zeroes; returns their tokens. Buffers are held until reaped. Never waits; all go
        to queue 0. What the driver refuses ends like the rest, by its token; ValueError,
        TypeError, BufferError and OSError EINVAL (no whole sectors) refuse the whole batch."""
    def reap(self, minimum: int = 1, timeout: float | None = None) -> list[tuple[int, int]]:
        """Completed ``(token, bytes or -errno)``, at least ``minimum`` unless ``timeout``
        seconds passed first or nothing is outstanding."""
    def stats(self) -> DriverStats:
        """Waits while a queue copies."""

@final
class Virtqueue:
    """The driver's side of one virtqueue, for drivers written in Python. Each request's data is
    copied, and waits are one thread's at a time: not for fast disks.

    OSError ENODEV or what :meth:`stop` was given once the driver has ended, EIO where the device
    broke the virtqueue's rules.
    """

    def __new__(cls, dma: Domain | Arena, line: VqLine, size: int, features: int) -> Self:
        """``size`` descriptors; ``features``: those negotiated, which say the format (RING_PACKED,
        EVENT_IDX, INDIRECT_DESC). OSError EINVAL: no such virtqueue, ENOMEM."""
    @property
    def areas(self) -> tuple[int, int, int]:
        """IOVAs of the descriptor, driver and device areas."""
    def start(self) -> None:
        """After DRIVER_OK: the device may use it from now on."""
    def stop(self, errno: int) -> None:
        """After a reset: every outstanding and later request ends with ``errno``."""
    def add(self, readable: Sequence[Buffer], writable: Sequence[int]) -> int:
        """Stages a request: pieces that the device reads, lengths of those that it writes
        (bytes); its token. BlockingIOError: no room now. ValueError: it never fits."""
    def kick(self) -> None:
        """Makes all that was added available, and kicks the device."""
    def reap(self) -> list[tuple[int, bytes]]:
        """Used requests, as token and what the device says it has written. Never waits."""
    def wait(self, timeout: float | None = None) -> bool:
        """Waits until there is something to reap; false after ``timeout`` seconds."""
    @property
    def outstanding(self) -> int:
        """Requests that were added and not reaped."""

@final
class NbdExport:
    """Connections in NBD's transmission phase, on a driver's disk. The handshake is made in
    Python: :mod:`vduse.exports.nbd`. Source: the NBD protocol, "Transmission phase"."""

    def __new__(
        cls,
        driver: BlkDriver,
        pool: Pool,
        *,
        first_worker: int = 0,
        data_path: BlkDataPath | None = None,
    ) -> Self:
        """Connection n uses queue n % queues, on worker (``first_worker`` + queue) % workers:
        that of the device's queue, where ``first_worker`` is the data path's. ``data_path``: the
        device's, whose backend of the moment is asked what lies where; None: all is data."""
    def attach(
        self, fd: int, *, structured: bool, base_allocation: bool, tls: NbdTls | None = None
    ) -> None:
        """Serves a connected stream socket from now on (takes ownership of ``fd``).
        ``structured``: structured replies were negotiated; ``base_allocation``: so was the
        meta context, under id 1 (needs ``structured``). ``tls``: the session that all this was done
        in; it is taken. ValueError after close."""
    @property
    def connections(self) -> int:
        """Those that are open now."""
    @property
    def event_fd(self) -> int:
        """Readable when :meth:`events` has something (owned by the export)."""
    def events(self) -> list[str]:
        """Why connections ended that did not end as they should: one line each."""
    def stats(self) -> dict[str, int]:
        """``connections`` (ever), ``requests``, ``bytes_read``, ``bytes_written``, ``errors``."""
    def close(self, timeout: float) -> bool:
        """Takes no request any more, waits until those taken are answered, at most ``timeout``
        seconds, and closes all connections; false if some were not answered."""

@final
class NbdFacts:
    """An export as a client's handshake has found it. Source: the NBD protocol, "Handshake"."""

    def __new__(
        cls,
        size: int,
        flags: int,
        *,
        structured: bool,
        base_allocation: int | None,
        minimum_block: int,
        maximum_payload: int,
    ) -> Self:
        """``size`` in bytes; ``flags``: transmission flags; ``structured``: replies are;
        ``base_allocation``: the meta context's id, if the server tells what lies where; the block
        sizes in bytes (NBD_INFO_BLOCK_SIZE). OverflowError: beyond the protocol's fields."""

@final
class NbdTls:
    """A TLS session, without I/O, until a backend or an export takes it; ValueError then."""

    def __new__(
        cls, host: str, authorities: bytes, client: tuple[bytes, bytes] | None = None
    ) -> Self:
        """A client's, towards a server whose certificate is for ``host`` (its subject alternative
        names) and signed by one of ``authorities``; ``client``: certificates and key for servers
        that ask for them. All PEM. OSError EINVAL: something is not."""
    @staticmethod
    def server(chain: bytes, key: bytes, authorities: bytes | None = None) -> NbdTls:
        """A server's, of its certificates and key. ``authorities``: one of them must have signed
        the client's certificate. All PEM. OSError EINVAL: something is not."""
    @property
    def handshaking(self) -> bool:
        """Until it can carry data."""
    def receive(self, data: bytes) -> bytes:
        """Takes bytes of the other side; the plaintext that they bring. OSError EPROTO: the session
        has failed, and :meth:`take_output` has what tells the other side."""
    def send(self, data: bytes) -> None:
        """Plaintext for the other side. OSError EPROTO."""
    def take_output(self) -> bytes:
        """What is to go over the wire, once."""

@final
class NbdControl:
    """Where an NBD backend asks for connections: numbers name them. From any thread."""

    @property
    def event_fd(self) -> int:
        """Readable when :meth:`wants` or :attr:`closed` has news (owned by the control)."""
    def wants(self) -> list[int]:
        """Connections that want a socket; each loss is told once, so they are to be tried until
        they have one or are not :meth:`wanted` any more."""
    def wanted(self, number: int) -> bool:
        """Whether there is still such a connection."""
    def connected(self, number: int, fd: int, facts: NbdFacts, tls: NbdTls | None = None) -> bool:
        """A stream socket past the handshake (takes ownership of ``fd``, and of the session that
        the handshake was made in); false: it is not wanted any more, and closed. OSError EINVAL:
        no virtio-blk device can be such an export."""
    def refused(self, number: int, why: str) -> None:
        """No socket yet, and why: the connection's state says so until there is one."""
    @property
    def closed(self) -> bool:
        """Whether the backend is: no connection is wanted any more."""

def nbd_backend(
    fd: int,
    facts: NbdFacts,
    tls: NbdTls | None = None,
    *,
    reconnect_delay: float,
    on_error: Literal["report", "wait"],
) -> tuple[Backend, NbdControl]:
    """A backend on an NBD export, with its first connection (a stream socket past the handshake;
    takes ownership of ``fd``, and of the session ``tls``). A request waits for a lost connection
    for ``reconnect_delay`` seconds; then it fails with EIO (``report``) or waits on (``wait``).
    OSError EINVAL, as for :meth:`NbdControl.connected`."""

# --- other people's programs -------------------------------------------------------------

@final
class Supervised:
    """A program and its descendants, whose calls on /dev/vduse come to this object: they run under
    a seccomp filter that notifies us of them (seccomp_unotify(2); rust/seccomp).

    A thread takes the notifications and never the GIL. What is not ours goes on in the kernel
    at once, irqs are answered at once (:meth:`add_node`), the rest waits for :meth:`take`. The
    program is a child of this process, to be waited for with ``os.waitpid``. Methods may be called
    from any thread; RuntimeError in a forked child.
    """

    @staticmethod
    def spawn(
        argv: Sequence[str],
        env: dict[str, str],
        cwd: str | None = None,
        stdio: tuple[int, int, int] = ...,
    ) -> Supervised:
        """Starts ``argv``, looked up in the PATH of ``env``, and returns once it runs. It gets dups
        of ``stdio`` (by default our own 0, 1 and 2), a process group of its own (Ctrl-C is the
        supervisor's affair), signals as at a login, no new privileges, and SIGKILL at
        :meth:`close` or when this process dies.

        OSError says in words which step failed: ENOSYS (Linux before 5.19), EBUSY (there is a
        seccomp listener above this process already), what exec says (ENOENT, EACCES, ENOEXEC),
        EINVAL (a NUL in a string)."""
    @property
    def pid(self) -> int:
        """The program's process."""
    def fileno(self) -> int:
        """An eventfd (owned by this object), readable when there are calls to take, notices, or
        :attr:`ended` has become true."""
    def take(self) -> list[NodeCall]:
        """The calls that came since the last time, in order; makes :meth:`fileno` unreadable."""
    def notices(self) -> list[str]:
        """Sentences for the log, each kind once a program: system calls of another architecture,
        memory that cannot be read, io_uring, kick eventfds that were replaced."""
    def add_node(self, inode: int, key: int, gate: IrqGate | None) -> None:
        """Ioctls on the socket with this inode (``os.fstat(fd).st_ino`` of the end that goes to the
        program; add it before :meth:`NodeCall.reply_fd`) are calls on node ``key``. With a gate,
        VDUSE_VQ_INJECT_IRQ is answered by it at once. OSError EEXIST."""
    def remove_node(self, inode: int) -> None:
        """The node is closed; nothing where there is none."""
    def stats(self) -> dict[str, int]:
        """Notifications: ``opens``, ``looks`` (stat, access, readlink) and ``ioctls`` that were to
        be taken, ``irqs`` answered at once, ``passed`` (not ours), ``foreign`` (another
        architecture's), ``io_uring``."""
    @property
    def ended(self) -> bool:
        """No process has the filter any more (before Linux 6.11: and all were waited for, so wait
        for :attr:`pid` first), or it is closed."""
    def close(self) -> None:
        """Kills the program, ends the thread; calls that wait for an answer fail with ENODEV, those
        of descendants that live on with ENOSYS from then on. Waits with the GIL released."""

@final
class NodeCall:
    """A system call of a supervised program's, which waits for its answer: one of the ``reply``
    methods, once (ValueError for a second). One that is dropped without fails with EIO. Answers to
    a caller that is gone do nothing. May be used from any thread."""

    @property
    def kind(self) -> Literal["open", "look", "ioctl"]:
        """``look``: a stat, access or readlink call."""
    @property
    def tid(self) -> int:
        """The calling thread."""
    @property
    def pid(self) -> int:
        """The calling process, looked up now; the thread where it is gone."""
    @property
    def path(self) -> str:
        """open, look: /dev/vduse or what lies below, without ``.``, ``..`` and doubled slashes,
        symbolic links not followed. Empty of an ioctl."""
    @property
    def flags(self) -> int:
        """open: ``O_*``; stat: ``AT_*``; access: the mode that it asks for; otherwise 0."""
    @property
    def key(self) -> int:
        """ioctl: the node's key."""
    @property
    def nr(self) -> int:
        """ioctl: its number."""
    @property
    def payload(self) -> bytes:
        """ioctl: its struct, read once, with the config bytes that follow those of CREATE_DEV and
        DEV_SET_CONFIG (left out above 4096). Empty: the ioctl reads none, or there is no such
        memory (EFAULT, where nothing else is wrong)."""
    def kick_fd(self) -> int:
        """VQ_SETUP_KICKFD: the eventfd that its struct names (close-on-exec; yours to close), or,
        where pidfd_getfd(2) is refused, one that was put in its place. OSError EBADF, EINVAL (no
        eventfd), ESRCH or ENOENT (the caller is gone), EMFILE."""
    def reply(self, result: int, payload: bytes = ...) -> None:
        """The call returns ``result`` or fails with an errno (negative). ``payload`` is written to
        the ioctl's struct before a result; EFAULT where it cannot be. ValueError: it is longer than
        the struct."""
    def reply_fd(self, fd: int, *, payload: bytes = ..., cloexec: bool) -> bool:
        """The call returns a dup of ``fd`` in the calling process; false: it is gone, or fails with
        EMFILE or EFAULT. ``payload`` as above."""
    def reply_stat(self, mode: int, rdev: int) -> None:
        """look: there is such a file (``st_mode``, ``st_rdev``), its owner this process's user. An
        access call succeeds, or is EACCES (to be executed, and no ``mode`` for it); a readlink call
        is EINVAL: no link. ValueError: no look."""

# --- load generator ----------------------------------------------------------------------
#
# ``spec``: op (read, write, randread, randwrite, mixed), block_size, depth, requests or
# seconds, seed, verify, span, reads, poll, patience. Results: requests, bytes, seconds, cpu_seconds
# (this thread), process_cpu_seconds, errors, messages (the first errors in words), latency_ns (p50,
# p90, p99, p99.9, max). Signals are looked at about ten times a second. ValueError for a load that
# cannot be made; OSError or RuntimeError where the driver gives up, TimeoutError where nothing
# completes for ``patience`` seconds. :mod:`vduse.testing.load` is the typed front.

def load_ours(
    driver: BlkDriver, spec: dict[str, Any], arena: Arena | None = None
) -> dict[str, Any]:
    """Runs a load on our driver. With ``arena``, the one it was made with, the data lies there
    and is not copied."""

@final
class VirtioDriver:
    """Crate ``virtio-driver``, connected to the vhost-user socket or the /dev/vhost-vdpa-N at
    ``path``: any number of loads, one after the other, of one depth and block size."""

    def __new__(
        cls,
        path: str,
        *,
        depth: int,
        block_size: int,
        packed: bool,
        queues: int,
        queue_size: int,
        event_idx: bool,
    ) -> Self: ...
    @property
    def capacity(self) -> int:
        """Bytes of the disk."""
    @property
    def read_only(self) -> bool:
        """The device takes no writes (VIRTIO_BLK_F_RO)."""
    @property
    def queues(self) -> int:
        """Virtqueues that the device has."""
    def run(
        self, spec: dict[str, Any], progress: Callable[[str, int, int], object] | None = None
    ) -> dict[str, Any]:
        """Runs a load. ``progress`` is called about ten times a second with what is being done
        (filling, load, reading back), the requests completed and the blocks in use; its exception
        ends the load. After an exception the driver is closed; ValueError then."""
    def close(self) -> None:
        """Ends the connection. Idempotent."""

def load_virtio_drivers(device: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """The same on crate ``virtio-drivers``, through the domain of a vDPA device
    (:class:`vduse.bus.vdpa.VdpaDevice`)."""

def entropy_virtio_drivers(device: Any, length: int, part: int) -> bytes:
    """``length`` bytes of an entropy device, asked for ``part`` bytes at a time by crate
    ``virtio-drivers``, through the domain of a vDPA device. Spins meanwhile."""

def vhost_frontend(path: str, change: Callable[[], object]) -> dict[str, Any]:
    """Talks to the vhost-user block device at ``path`` by crate ``vhost``, rust-vmm's front end:
    every message that it speaks, and one request on each virtqueue, twice over with a reset
    between. ``change`` makes the device change its config space, and is called once a round.

    What was answered: features, protocol_features, queues, memory_slots, config (36 bytes),
    inflight (bytes of the records), config_changes, serials (of each virtqueue and round) and
    bases (the same). RuntimeError: the crate does not take a reply for what it should be;
    whatever ``change`` raises."""

def copy_baseline(
    block_size: int, depth: int, requests: int, write: bool, others: int
) -> dict[str, Any]:
    """The same of one thread that copies ``requests`` blocks between ``depth`` blocks and
    ``others``, which stand for bounce pages or a disk in memory."""

# --- device ------------------------------------------------------------------------------

@final
class Pool:
    """The worker threads that serve device queues."""

    def __new__(
        cls, workers: int | None = None, *, poll: bool = True, cpus: Sequence[int] = ()
    ) -> Self:
        """``workers`` None: one a CPU, at most 4. ``poll`` False: they sleep as soon as there is
        nothing to do, instead of looking again for a moment (docs/performance.md). ``cpus``: one
        worker for each, which runs there alone. ValueError: one that is not there, or that this
        process may not use."""
    @property
    def workers(self) -> int: ...
    def stats(self) -> list[dict[str, int]]:
        """:class:`vduse.control.statistics.WorkerStats` of each worker."""
    def close(self) -> None:
        """Ends the threads. OSError EBUSY: a data path on it is not closed."""

@disjoint_base
class Backend:
    """What stores a disk's bytes."""

    @staticmethod
    def null(size: int) -> Backend: ...
    @staticmethod
    def memory(size: int) -> Backend: ...
    @staticmethod
    def file(
        path: str,
        *,
        read_only: bool = False,
        direct: bool = False,
        engine: str = "auto",
        lock: bool = True,
        lock_late: bool = False,
        container: bool = False,
    ) -> Backend:
        """``engine``: auto, io_uring, threads. OSError; BlockingIOError where the image is
        locked by another program (QEMU's OFD byte locks). ``lock_late``: the lock is held while a
        virtqueue is served, and not from here to :meth:`close`. ``container``: what is in it is
        another layer's to understand, so it may have any size; as a disk it has whole sectors, the
        last one with zeroes past the file's end."""
    def window(self, offset: int, size: int | None = None) -> Backend:
        """A part of it as a disk of a size of its own, ``size`` bytes from ``offset`` on or all the
        rest. Others may use it, too; it cannot be closed before its windows. OSError EINVAL: not
        within it, or not of whole blocks."""
    @property
    def size(self) -> int:
        """Bytes."""
    @property
    def block_size(self) -> int:
        """Smallest unaligned-safe unit in bytes (512, or the device's logical block)."""
    @property
    def read_only(self) -> bool: ...
    @property
    def can_discard(self) -> bool: ...
    @property
    def engine(self) -> str:
        """``none``, ``io_uring``, ``threads`` or ``python``: what really serves."""
    @property
    def overlay_allocated(self) -> int:
        """Bytes of memory that hold what overlays among its layers keep."""
    @property
    def connection(self) -> ConnectionState:
        """How the link to whatever holds the bytes stands; a layer's is that of what it lies on.
        Also of a backend that is closed or beneath a layer."""
    def refresh_size(self) -> int:
        """Looks at the file's size again (resize); bytes."""
    def resize(self, size: int) -> None:
        """Makes the disk ``size`` bytes: what is new reads as zeroes, what is beyond is gone.
        Beneath a layer, too. OSError EOPNOTSUPP: it has a size of its own (a file: change that)."""
    def flush(self) -> None: ...
    def close(self) -> None:
        """Flushes; unlocks once no virtqueue works on it. OSError EBUSY: a data path on it is not
        closed, or it lies beneath a layer."""
    def release(self) -> None:
        """Of a layer: flushes and ends it; what lies beneath stays open, and may be used again.
        OSError: as of :meth:`close`; the flush failed, and it has ended all the same. ValueError:
        it is no layer."""

def qcow2_backend(
    path: str,
    pool: Pool,
    *,
    read_only: bool = False,
    direct: bool = False,
    engine: str = "auto",
    lock: bool = True,
    backing: Backend | None = None,
    follow: bool = True,
) -> Backend:
    """An image of QEMU's, versions 2 and 3, in a file, with what it names. It is served on a worker
    of ``pool``, which cannot be closed before it, nor can ``backing``: the disk beneath, in the
    place of what the image names. ``follow``: without one, what it names; else nothing. OSError
    EINVAL: it is not supported, and why; otherwise as :meth:`Backend.file`."""

def qcow2_layer(
    below: Backend,
    pool: Pool,
    *,
    name: str,
    read_only: bool = False,
    backing: Backend | None = None,
    follow: bool = True,
) -> Backend:
    """An image that ``below`` holds, as a layer on it. ``name``: of that, for messages. What the
    image names is not followed: EINVAL if it names something and ``backing`` is not given, or
    ``follow`` false; otherwise as :func:`qcow2_backend`."""

def rbd_backend(
    pool: str,
    image: str,
    *,
    namespace: str | None = None,
    snapshot: str | None = None,
    conf: str | None = None,
    mon_host: str | None = None,
    auth: str | None = None,
    id: str | None = None,
    keyring: str | None = None,
    key: str | None = None,
    read_only: bool = False,
    direct: bool = False,
    lock: Literal["refuse", "break", "share"] = "refuse",
    open_timeout: float = 30.0,
    reconnect_delay: float | None = None,
) -> Backend:
    """An image of a Ceph cluster, by librbd, which is loaded with the first one. ``mon_host`` and
    ``auth``: the configuration's ``mon_host`` and ``auth_client_required``. ``id``: the cephx user
    without ``client.``; ``key``: its secret in base64, in place of ``keyring``, a file.
    ``direct``: without librbd's cache. ``lock``: the image's exclusive lock; ``refuse`` and
    ``break`` hold it, ``share`` leaves it to librbd. ``open_timeout`` in seconds; requests that
    wait for the cluster for ``reconnect_delay`` seconds fail with EIO, without it they wait on.
    OSError: ENOENT (no library, configuration, pool, image or snapshot), EACCES, EBUSY (locked
    elsewhere), ETIMEDOUT; each with a line that says what to do."""

# A layer takes the backend beneath for itself: closing it closes that; meanwhile other uses of
# that are refused with OSError EBUSY. The same where a data path is on it already.
# :mod:`vduse.backends.layers` is the typed front. An operation's name is one of read, write,
# flush, discard, write_zeroes.

def layer_overlay(below: Backend) -> Backend:
    """Changes are kept in memory; ``below`` is never written."""

def layer_read_only(below: Backend) -> Backend:
    """Changes are refused with EROFS."""

def layer_delay(below: Backend, pauses: dict[str, tuple[float, float]], seed: int = 0) -> Backend:
    """``pauses``: by operation, least and most seconds before it goes to the backend; what is
    left out does not wait. ValueError: an unknown operation, seconds out of range."""

@final
class Faults:
    """The rules of error layers, for any number of them. The first rule that an operation fails
    by counts it; later ones do not see it. Rates draw from one sequence by ``seed``."""

    def __new__(cls, seed: int = 0) -> Self: ...
    def add(
        self,
        ops: Sequence[str],
        range: tuple[int, int] | None,
        errno: int,
        rate: float,
        after: int,
        count: int | None,
    ) -> int:
        """A rule for ``ops`` that touch a byte of ``range`` (offset, length): after the first
        ``after`` of them, each fails with probability ``rate``, at most ``count``. Its number,
        from 0. ValueError."""
    def clear(self) -> None:
        """No rules any more; numbers and hits stay."""
    def hits(self) -> list[int]:
        """How many operations each rule has failed, by number."""

def layer_error(below: Backend, faults: Faults) -> Backend:
    """Operations fail by the rules of ``faults``."""

@final
class Throttle:
    """The limits of throttle layers, which take turns where there are several. By name:
    ``iops_total``, ``iops_read``, ``iops_write``, ``bps_total``, ``bps_read``, ``bps_write``,
    each with ``_max``, and ``iops_size``; :class:`vduse.backends.layers.Limits` says what they
    mean."""

    def __new__(cls, limits: dict[str, float]) -> Self:
        """ValueError: an unknown limit, not above 0, a ``_max`` below its rate or without one,
        ``iops_size`` below 1."""
    def set_limits(self, limits: dict[str, float]) -> None:
        """Other limits from now on, also for what waits. ValueError."""

def layer_throttle(below: Backend, throttle: Throttle, *, shared: bool = False) -> Backend:
    """Operations wait for their turn under the limits of ``throttle``. ``shared``: others may use
    ``below``, too, and closing the layer leaves it open."""

@final
class PythonBackend(Backend):
    """A disk served by Python code, with one call and one acquisition of the GIL a batch.
    :class:`vduse.backends.python.PythonBackend` is its typed front."""

    def __new__(
        cls,
        handler: object,
        report: Callable[[str, BaseException | None], object],
        closed: Callable[[], object],
        *,
        size: int,
        block_size: int,
        read_only: bool,
        can_discard: bool,
        batches: bool,
    ) -> Self:
        """With ``batches`` each batch is a call of ``handler.submit(batch)``; without, each
        request one of ``handler.read(offset, buffer)``, ``write(offset, buffer)``, ``flush()``,
        ``discard(offset, length)`` or ``write_zeroes(offset, length, unmap)``, all looked up
        now. ``report(message, error)`` writes to the log; ``closed()`` is called once, at the
        end. OSError EINVAL: ``size`` is no multiple of 512, or 0; ValueError: ``block_size`` is
        no power of two from 512 to 65536."""
    def resize(self, size: int) -> None:
        """The disk has ``size`` bytes from now on; devices hear of it. OSError EINVAL."""
    def complete(
        self,
        tokens: int | Sequence[int] | Buffer,
        error: int | Sequence[int] | Buffer | None = None,
    ) -> None:
        """Completes requests by their tokens, from any thread: one, or many (unsigned 64-bit
        integers where it is a buffer). ``error``: 0 or an errno, one for all, or as many as there
        are tokens (signed 32-bit where it is a buffer). ValueError: some tokens name no open
        request (the others are completed), or an error is neither 0 nor an errno."""
    def python_stats(self) -> list[tuple[str, int]]:
        """``batches``, ``requests``, ``exceptions``, ``dropped``, ``stale_views``."""

def end_calls(timeout: float) -> bool:
    """Workers call no handler any more, of no disk or device: requests end with EIO, chains with 0
    bytes. True once no call is under way; false if one still is after ``timeout`` seconds. The
    interpreter's end does so by itself, with 2 seconds."""

@final
class IoBatch:
    """The requests that a virtqueue had for its disk at one time, each to be completed once.

    A sequence; ``batch[i]`` makes a new :class:`IoRequest` each time. It is also a buffer of
    records, ``numpy.asarray(batch)`` without a copy: ``token`` (u8), ``offset`` and ``length`` in
    bytes (u8), ``address`` of the data in this process or 0 (u8; valid until the request is
    completed), ``op`` (u1, :class:`vduse.backends.python.IoOp`), ``may_unmap`` (?), ``result``
    (i4, -1), which is the one to be written: see :meth:`commit`.

    An open request that nobody can complete any more, because the batch, the request and all
    views on them are gone, fails with EIO, unless it was deferred. May be used from any thread;
    RuntimeError in a forked child.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> IoRequest: ...
    def __iter__(self) -> Iterator[IoRequest]: ...
    if sys.version_info >= (3, 12):  # below, it is one without the name
        def __buffer__(self, flags: int, /) -> memoryview: ...

    @property
    def open(self) -> int:
        """How many are not completed."""
    def complete(self, error: int = 0) -> int:
        """Completes all that are open, with success or an errno; how many."""
    def commit(self) -> int:
        """Completes those whose record's ``result`` says how: 0 success, an errno failure (EIO
        where there is no such), -1 not yet; how many."""
    def defer(self) -> None:
        """Open requests stay so when the batch is gone, to be completed by their tokens."""

@final
class IoRequest:
    """One request of a batch. May be used from any thread; RuntimeError in a forked child.

    A request of a driver that was reset is ``completed`` by itself; completing it once more does
    nothing.
    """

    @property
    def op(self) -> str:
        """``read``, ``write``, ``flush``, ``discard`` or ``write_zeroes``."""
    @property
    def offset(self) -> int:
        """Bytes from the disk's start; 0 of a flush."""
    @property
    def length(self) -> int:
        """Bytes; 0 of a flush."""
    @property
    def may_unmap(self) -> bool:
        """Space may be given back; false of reads, writes and flushes."""
    @property
    def buffer(self) -> memoryview:
        """The driver's memory, to be filled by a read and read-only for a write; not copied where
        it lies in one piece. Released when the request is completed. ValueError: it is, or has no
        data."""
    @property
    def token(self) -> int:
        """Names it to :meth:`PythonBackend.complete`."""
    @property
    def completed(self) -> bool:
        """Nothing is expected any more."""
    def complete(self, error: int = 0) -> None:
        """Ends it, with success or an errno. ValueError: it is completed already, or ``error`` is
        neither 0 nor an errno."""

@disjoint_base
class DataPath:
    """All queues of one device, served by a pool: what is the same for every device type."""

    @staticmethod
    def inflight_size(size: int, features: int) -> int:
        """Bytes of the in-flight record of a virtqueue of ``size`` descriptors; a multiple of
        64."""
    def start_queue(
        self,
        index: int,
        *,
        size: int,
        features: int,
        areas: tuple[int, int, int],
        state: tuple[int, ...],
        kickfd: int,
        callfd: int,
        inflight: tuple[int, int] | None,
    ) -> None:
        """Starts a queue from ``state`` ((avail,) split; (avail_index, avail_wrap, used_index,
        used_wrap) packed). Looks at the ring at once: kicks may have been lost. Takes dups of
        the fds. ``callfd`` -1: irqs go by VDUSE_VQ_INJECT_IRQ through the resolver.
        ``inflight``: (fd, offset) of its in-flight record. OSError EFAULT, EINVAL."""
    def stop_queue(self, index: int, timeout: float) -> tuple[int, ...] | None:
        """Takes nothing more, waits for what is in flight, returns where the queue stands;
        None if requests were still in flight after ``timeout`` seconds (the queue keeps
        draining). ValueError if it is not running."""
    def queue_running(self, index: int) -> bool: ...
    def set_callfd(self, index: int, fd: int) -> None: ...
    def set_kickfd(self, index: int, fd: int) -> None: ...
    def invalidate(self, start: int, last: int, timeout: float) -> bool:
        """UPDATE_IOTLB: a new generation; true once every worker has acknowledged."""
    def set_log(
        self, log: tuple[int, int, int] | None, used: dict[int, int], timeout: float
    ) -> bool:
        """What is written into the driver's memory is marked in ``log`` (memory file, of which it
        takes a dup, offset, bytes), until the next reset; true once every worker does. ``used``:
        by virtqueue, the address at which writes to its device area are marked."""
    def reset(self, timeout: float) -> bool:
        """Stops all queues without finishing into guest memory; true once no request touches
        guest memory any more and every mapping is dropped."""
    @property
    def first_worker(self) -> int:
        """Queue n is served by worker (``first_worker`` + n) % workers of the pool."""
    @property
    def on_worker(self) -> bool:
        """Whether the caller runs on a worker of the pool: to wait for a queue there is to wait
        for oneself."""
    @property
    def event_fd(self) -> int:
        """Readable when :meth:`events` has something (owned by the data path)."""
    def events(self) -> list[tuple[str, int, str]]:
        """``(kind, queue, message)``; kind ``broken``: the queue and its device have stopped
        because of what the driver or its memory did (a reset makes it whole); ``failed``: the
        backend has failed a request, the first with its errno in a minute; ``resized``: the
        backend has ``message`` bytes now; ``connection``: how its connection stands; ``umem``: why
        pages of this process do not take the place of the bounce pages."""
    def stats(self) -> DeviceStats: ...
    def close(self) -> None: ...

@final
class BlkDataPath(DataPath):
    """All queues of one virtio-blk device, served by a pool."""

    def __new__(
        cls,
        pool: Pool,
        backend: Backend,
        resolver: CallSocket | KernelNode,
        limits: dict[str, int],
        serial: bytes,
        umem: bool = False,
    ) -> Self:
        """``limits``: capacity (sectors of 512), seg_max, size_max, blk_size,
        max_discard_sectors, max_discard_seg, discard_sector_alignment,
        max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap, read_only.
        ``umem``: pages of this process take the place of the bounce pages (REG_UMEM)."""
    def set_capacity(self, sectors: int) -> None: ...
    def pause(self, timeout: float) -> bool:
        """Lets go of the backend, which may be closed then: the virtqueues take nothing more, and
        what is in flight ends; requests that come stay in the ring. False: requests were still in
        flight after ``timeout`` seconds, and all goes on as before. Virtqueues that are started
        meanwhile wait, too."""
    def resume(self, backend: Backend) -> None:
        """Ends the pause: ``backend`` serves from now on. OSError: virtqueues cannot work on it;
        pause again, and resume with another. ValueError: it is not paused."""

@final
class Chain:
    """A descriptor chain that the driver offered (virtio 1.3, section 2.6): bytes to read,
    bytes to write, in any number of pieces. It may be kept, and completed later from any
    thread. A chain that is dropped is completed with 0 bytes written, and the log says so.

    Once it has been completed everything is a ValueError; once the device was reset, a
    ConnectionResetError, but for :meth:`complete`, which does nothing then. RuntimeError in a
    forked child.
    """

    @property
    def readable(self) -> tuple[memoryview, ...]:
        """The device-readable pieces, in order. The driver may change their bytes at any time:
        copy what is checked. Released when the chain ends; a part that is still used then (a
        slice, an array on it) keeps its memory mapped, which the log says, and a reset waits
        for it."""
    @property
    def writable(self) -> tuple[memoryview, ...]:
        """The same of the device-writable pieces."""
    @property
    def readable_length(self) -> int:
        """Bytes."""
    @property
    def writable_length(self) -> int:
        """Bytes."""
    @property
    def ended(self) -> bool:
        """Whether it was completed, or taken back by a reset."""
    def read(self) -> bytes:
        """All device-readable bytes, copied."""
    def write(self, data: Buffer, offset: int | None = None) -> int:
        """Copies ``data`` to ``offset`` of the device-writable part, by default where the last
        write ended; how many bytes had room."""
    def complete(self, written: int | None = None) -> None:
        """Gives it back to the driver. ``written``: bytes from the start of the device-writable
        part, by default what :meth:`write` has written. ValueError: there is no such room."""

@final
class ChainBatch:
    """The chains of one batch, in the driver's order: a sequence."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Chain: ...
    def __iter__(self) -> Iterator[Chain]: ...
    def complete(self, written: int | None = None) -> None:
        """Completes those that have not ended, each as :meth:`Chain.complete`."""

@final
class ChainDataPath(DataPath):
    """All queues of one device whose chains Python serves, on the workers of ``pool``."""

    def __new__(
        cls,
        pool: Pool,
        resolver: CallSocket | KernelNode,
        submit: Callable[[int, ChainBatch], object],
        drain: Callable[[int], object] | None = None,
    ) -> Self:
        """``submit``: gets a virtqueue's index and its next chains, at least one, on its worker.
        It may keep chains. Where it raises, the log has the traceback, and chains of the batch
        that have not ended are completed with 0 bytes written. ``drain``: told of a virtqueue
        that is being stopped while there are such chains: it should complete them."""
