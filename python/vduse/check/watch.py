"""Rules that show in what crosses the channel, whoever drives the device: a tap.

The framework is made with it (``Framework(tap=Watch())``) before the daemon starts. Virtqueue
interrupts must cross it, too: a device that signals a call fd by itself (docs/channel.md) is seen
by its driver alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from vduse.channel.tap import Called, Closed, Messaged, Opened, Record, Responded
from vduse.check import rules
from vduse.check.verdict import Ledger
from vduse.control import abi
from vduse.control.features import Status

#: Lines that are kept for evidence.
_TAIL = 64
#: Devices up to which those are kept that were not created: there is no end of names.
_MOST_REFUSED = 64
#: Answered request ids that are remembered.
_ANSWERED = 4096
_LARGEST_QUEUE = 1 << 15

#: Structs with reserved fields, by the ioctl that carries them.
_WITH_RESERVED: dict[
    int,
    type[abi.DevConfig | abi.VqConfig | abi.IotlbEntryV2 | abi.IovaUmem | abi.IovaInfo],
] = {
    abi.Ioctl.CREATE_DEV: abi.DevConfig,
    abi.Ioctl.VQ_SETUP: abi.VqConfig,
    abi.Ioctl.IOTLB_GET_FD2: abi.IotlbEntryV2,
    abi.Ioctl.IOTLB_REG_UMEM: abi.IovaUmem,
    abi.Ioctl.IOTLB_DEREG_UMEM: abi.IovaUmem,
    abi.Ioctl.IOTLB_GET_INFO: abi.IovaInfo,
}


class Watch:
    """A :class:`~vduse.channel.tap.Tap`. Thread-safe; raises nothing, whatever the bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, WatchedDevice] = {}

    def device(self, name: str) -> WatchedDevice:
        """What was seen of a device."""
        with self._lock:
            return self._devices.setdefault(name, WatchedDevice(name))

    def devices(self) -> list[WatchedDevice]:
        """All that were seen."""
        with self._lock:
            return list(self._devices.values())

    def on_open(self, device: str) -> None:
        self.device(device).opened()

    def on_call(
        self,
        device: str,
        nr: int,
        payload: bytes,
        nfds: int,
        result: int,
        answer: bytes,
        answer_nfds: int,
    ) -> None:
        if nr == abi.Ioctl.CREATE_DEV:
            # The name lies first, whatever follows.
            device = abi.unpack_name(payload[: abi.NAME_MAX])
            if result < 0 and len(self._devices) >= _MOST_REFUSED:
                return
        call = Called(device, monotonic(), nr, payload, nfds, result, answer, answer_nfds)
        if device:
            self.device(device).called(call)

    def on_message(self, device: str, data: bytes) -> None:
        self.device(device).messaged(data)

    def on_response(self, device: str, data: bytes) -> None:
        self.device(device).responded(data)

    def on_close(self, device: str) -> None:
        self.device(device).closed()


class WatchedDevice:
    """One device: its node, the messages under way, and its verdicts so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ledger = Ledger()
        #: Called, with no lock held, when the node was closed: be quick.
        self.on_closed: Callable[[], None] | None = None
        self._lock = threading.Condition()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._open = False
        self._closed_at = 0.0
        self._opens = 0
        self._status = 0
        self._was_live = False
        self._pending: dict[int, abi.DevRequest] = {}
        self._answered: deque[int] = deque(maxlen=_ANSWERED)
        self._irqs: dict[int, int] = {}
        self._unset: set[int] | None = None
        self._config = bytearray()
        self._unannounced: str | None = None

    # --- for scenarios ----------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """A program has the node open."""
        return self._open

    @property
    def opens(self) -> int:
        """How often the node was opened so far."""
        return self._opens

    def wait_opened(self, opens: int, timeout: float) -> bool:
        """Waits ``timeout`` seconds until :attr:`opens` is above ``opens`` and the node open;
        whether it is."""
        with self._lock:
            return self._lock.wait_for(lambda: self._open and self._opens > opens, timeout)

    def closed_before(self, moment: float) -> bool:
        """Whether the node is closed, and was before ``moment`` (monotonic seconds)."""
        return not self._open and self._closed_at < moment

    def wait_closed(self, timeout: float) -> bool:
        """Waits ``timeout`` seconds for the node's end; whether it came."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._open, timeout)

    def tail(self, lines: int = 6) -> str:
        """The last calls and messages, the oldest first."""
        with self._lock:
            return "\n".join(list(self._tail)[-lines:])

    def irqs(self, index: int) -> int:
        """VQ_INJECT_IRQ calls that succeeded for a virtqueue."""
        return self._irqs.get(index, 0)

    def finish(self) -> None:
        """At the end: what was still to come did not."""
        if self._unset:
            missing = ", ".join(map(str, sorted(self._unset)))
            self.ledger.fail(rules.VQ_SETUP, f"no VDUSE_VQ_SETUP of virtqueue {missing}")
        if self._unannounced is not None:
            self.ledger.fail(rules.CONFIG_ANNOUNCED, self._unannounced)

    # --- the tap ----------------------------------------------------------------------------

    def opened(self) -> None:
        """The node was opened."""
        with self._lock:
            self._open = True
            self._opens += 1
            self._note(Opened(self.name, monotonic()))
            self._lock.notify_all()

    def closed(self) -> None:
        """The node was closed; its unanswered messages go to whoever opens it next."""
        with self._lock:
            self._open = False
            self._closed_at = monotonic()
            self._note(Closed(self.name, monotonic()))
            self._lock.notify_all()
        if (tell := self.on_closed) is not None:
            tell()

    def messaged(self, data: bytes) -> None:
        """A message went to the daemon."""
        request = abi.DevRequest.unpack(data)
        with self._lock:
            self._pending[request.request_id] = request
            self._note(Messaged(self.name, monotonic(), request))

    def responded(self, data: bytes) -> None:
        """An answer came."""
        with self._lock:
            if len(data) != abi.DevResponse.SIZE:
                self._note(Responded(self.name, monotonic(), data))
                self._fail(rules.MESSAGE_SIZE, f"{len(data)} bytes instead of 152")
                return
            response = abi.DevResponse.unpack(data)
            self._note(Responded(self.name, monotonic(), response))
            self.ledger.reach(rules.MESSAGE_SIZE, rules.MESSAGE_RESERVED, rules.MESSAGE_RESULT)
            if any(response.reserved):
                # Refused as write(2) does: the message still waits.
                self._fail(rules.MESSAGE_RESERVED, f"reserved is {response.reserved.hex()}")
            else:
                self._check_response(response)

    def called(self, call: Called) -> None:
        """An ioctl was made and answered."""
        with self._lock:
            self._note(call)
            self._check_reserved(call)
            match call.nr:
                case abi.Ioctl.CREATE_DEV:
                    self._created(call)
                case abi.Ioctl.VQ_SETUP:
                    self._vq_set_up(call)
                case abi.Ioctl.VQ_INJECT_IRQ:
                    self._vq_irq(call)
                case abi.Ioctl.DEV_SET_CONFIG if call.result >= 0:
                    self._config_set(call)
                case abi.Ioctl.DEV_INJECT_CONFIG_IRQ if self._unannounced is not None:
                    self._unannounced = None
                    self.ledger.reach(rules.CONFIG_ANNOUNCED)

    # --- checks, the lock held --------------------------------------------------------------

    @property
    def _live(self) -> bool:
        return bool(self._status & Status.DRIVER_OK)

    def _note(self, record: Record) -> None:
        self._tail.append(record.line())

    def _fail(self, rule: rules.Rule, what: str) -> None:
        self.ledger.fail(rule, "\n".join([what, *list(self._tail)[-4:]]))

    def _check_response(self, response: abi.DevResponse) -> None:
        if response.result not in list(abi.RequestResult):
            self._fail(rules.MESSAGE_RESULT, f"result is {response.result}")
        request = self._pending.pop(response.request_id, None)
        if request is not None:
            self.ledger.reach(rules.MESSAGE_ID, rules.MESSAGE_ONCE)
            self._answered.append(response.request_id)
            if isinstance(request.message, abi.SetStatus):
                self._set_status(request.message.status, response.result)
        elif response.request_id in self._answered:
            self._fail(rules.MESSAGE_ONCE, f"message {response.request_id} is answered again")
        else:
            self._fail(rules.MESSAGE_ID, f"no message {response.request_id} was sent")

    def _set_status(self, status: int, result: int) -> None:
        if status == 0:
            self._status = 0  # the framework resets even where the device refuses
        elif result == abi.RequestResult.OK:
            self._status = status
        if self._live:
            self._was_live = True
            self.ledger.reach(rules.IRQ_DRIVER_OK)

    def _check_reserved(self, call: Called) -> None:
        kind = _WITH_RESERVED.get(call.nr)
        if kind is None:
            return
        try:
            struct = kind.unpack(call.payload)
        except ValueError:
            return  # no such struct: the framework has said so
        self.ledger.reach(rules.CALL_RESERVED)
        if any(struct.reserved):
            shown = replace(call, payload=struct.pack()).line()
            self._fail(rules.CALL_RESERVED, f"reserved is {struct.reserved.hex()} in\n{shown}")

    def _created(self, call: Called) -> None:
        if call.result >= 0:
            config = abi.DevConfig.unpack(call.payload)
            self._unset = set(range(config.vq_num))
            self._config = bytearray(config.config)
            self._status = 0

    def _config_set(self, call: Called) -> None:
        update = abi.DevSetConfig.unpack(call.payload)
        before = bytes(self._config)
        self._config[update.offset : update.offset + len(update.data)] = update.data
        if self._live and self._config != before:
            self._unannounced = f"no config interrupt after\n{call.line()}"

    def _vq_set_up(self, call: Called) -> None:
        if len(call.payload) != abi.VqConfig.SIZE:
            return
        setup = abi.VqConfig.unpack(call.payload)
        if self._unset is not None:
            self._unset.discard(setup.index)
            if not self._unset:
                self.ledger.reach(rules.VQ_SETUP)
        self.ledger.reach(rules.VQ_SIZE)
        size = setup.max_size
        if size == 0 or size & (size - 1) or size > _LARGEST_QUEUE:
            self._fail(rules.VQ_SIZE, f"virtqueue {setup.index}: max_size {size}")

    def _vq_irq(self, call: Called) -> None:
        if len(call.payload) == 4 and call.result >= 0:
            index = abi.unpack_u32(call.payload)
            self._irqs[index] = self._irqs.get(index, 0) + 1
        if self._live or any(
            isinstance(request.message, abi.SetStatus) and request.message.status & Status.DRIVER_OK
            for request in self._pending.values()
        ):
            return  # an answer and an interrupt that follows it come by two ways
        rule = rules.RESET_IRQ if self._was_live and not self._status else rules.IRQ_DRIVER_OK
        self._fail(rule, f"an interrupt while the status is {self._status:#x}")
