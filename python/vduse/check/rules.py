"""The rules that a VDUSE daemon is held to: one table, from which docs/conformance.md is made.

Each is of the VDUSE API (linux/vduse.h, Documentation/userspace-api/vduse.rst) or of virtio 1.3,
and says what a daemon does that keeps it. Nothing here looks at a daemon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_HEADER = "linux/vduse.h"
_VDUSE = "vduse.rst"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row."""

    id: str
    #: What a daemon does that keeps the rule.
    sentence: str
    #: Where it is written; ``virtio`` is virtio 1.3.
    source: str
    #: The part of the table that it stands in.
    part: str


RULES: Final[dict[str, Rule]] = {}


class _Part:
    def __init__(self, name: str) -> None:
        self._name = name

    def rule(self, id: str, sentence: str, source: str) -> Rule:
        """Adds a row."""
        RULES[id] = rule = Rule(id, sentence, source, self._name)
        return rule


_calls = _Part("Messages and calls")
MESSAGE_SIZE = _calls.rule(
    "message.size", "An answer is one whole vduse_dev_response.", f"{_HEADER}: vduse_dev_response"
)
MESSAGE_RESERVED = _calls.rule(
    "message.reserved",
    "The reserved field of an answer is zero.",
    f"{_HEADER}: vduse_dev_response.reserved",
)
MESSAGE_RESULT = _calls.rule(
    "message.result",
    "The result of an answer is VDUSE_REQ_RESULT_OK or VDUSE_REQ_RESULT_FAILED.",
    f"{_HEADER}: vduse_dev_response.result",
)
MESSAGE_ID = _calls.rule(
    "message.request-id",
    "An answer carries the request id of a message that was sent.",
    f"{_HEADER}: vduse_dev_response.request_id",
)
MESSAGE_ONCE = _calls.rule(
    "message.once", "A message is answered once.", f"{_VDUSE}: read(), then write() the response"
)
MESSAGE_IN_TIME = _calls.rule(
    "message.in-time",
    "Every message is answered within msg_timeout, also under load.",
    f"{_VDUSE}: msg_timeout",
)
MESSAGE_UNKNOWN = _calls.rule(
    "message.unknown-type",
    "A message of a type that its API version does not have is answered FAILED.",
    f"{_HEADER}: vduse_req_type, VDUSE_REQ_RESULT_FAILED",
)
CALL_RESERVED = _calls.rule(
    "call.reserved", "Reserved fields of ioctl structs are zero.", f"{_HEADER}: reserved"
)
VQ_SETUP = _calls.rule(
    "vq-setup.all",
    "Each virtqueue of the device is set up before it is attached.",
    f"{_VDUSE}: VDUSE_VQ_SETUP",
)
VQ_SIZE = _calls.rule(
    "vq-setup.size",
    "A virtqueue's max_size is a power of two up to 32768: a driver may choose split rings.",
    "virtio 2.7",
)

_config = _Part("What it offers")
OFFER_VERSION_1 = _config.rule("features.version-1", "VIRTIO_F_VERSION_1 is offered.", "virtio 6.2")
CONFIG_SIZE = _config.rule(
    "config.size",
    "The config space holds the fields of every feature that is offered.",
    "virtio 2.5, 5.2.4",
)
CONFIG_BLOCK = _config.rule(
    "config.blk-size",
    "blk_size is a power of two from 512 up, and the capacity whole blocks of it.",
    "virtio 5.2.4, 5.2.5",
)
CONFIG_SEGMENTS = _config.rule(
    "config.seg-max",
    "size_max is not 0, and seg_max from 1 up to what a virtqueue has room for: header and "
    "status take two descriptors.",
    "virtio 2.7.5.3.1, 5.2.4",
)
CONFIG_QUEUES = _config.rule(
    "config.num-queues",
    "num_queues is from 1 up to the virtqueues that the device has.",
    "virtio 5.2.4, 5.2.2",
)
CONFIG_ANNOUNCED = _config.rule(
    "config.announced",
    "A config space that changes under DRIVER_OK is followed by a config interrupt.",
    f"{_VDUSE}: VDUSE_DEV_INJECT_CONFIG_IRQ; virtio 2.3",
)

_status = _Part("Status")
FEATURES_UNOFFERED = _status.rule(
    "status.features-unoffered",
    "FEATURES_OK with feature bits that were not offered is answered FAILED.",
    f"{_VDUSE}: VDUSE_SET_STATUS; virtio 2.2.2, 3.1.1",
)
FEATURES_SUBSET = _status.rule(
    "status.features-subset",
    "FEATURES_OK with a valid subset of the offered features is answered OK.",
    "virtio 2.2.2",
)
DRIVER_OK = _status.rule(
    "status.driver-ok",
    "DRIVER_OK with virtqueues that are set up right is answered OK.",
    f"{_VDUSE}: VDUSE_SET_STATUS",
)
DRIVER_OK_UNMAPPED = _status.rule(
    "status.unmapped-queue",
    "DRIVER_OK with a ready virtqueue whose areas are mapped nowhere is answered FAILED.",
    f"{_VDUSE}: VDUSE_SET_STATUS, VDUSE_IOTLB_GET_FD",
)
DRIVER_OK_TOO_LONG = _status.rule(
    "status.too-long-queue",
    "DRIVER_OK with a virtqueue longer than its max_size is answered FAILED.",
    f"{_HEADER}: vduse_vq_config.max_size",
)
IRQ_DRIVER_OK = _status.rule(
    "irq.driver-ok",
    "No virtqueue interrupt is injected before DRIVER_OK.",
    f"{_HEADER}: VDUSE_VQ_INJECT_IRQ; virtio 3.1.1",
)

_queues = _Part("Virtqueues")
USED_RETURNED = _queues.rule(
    "used.returned", "Each chain that was made available is used in the end.", "virtio 2.6"
)
USED_ONCE = _queues.rule("used.once", "No chain is used twice.", "virtio 2.7.8, 2.8")
USED_ID = _queues.rule(
    "used.id", "A used element names a chain that was made available.", "virtio 2.7.8, 2.8"
)
USED_LENGTH = _queues.rule(
    "used.length",
    "The used length is the number of bytes written into the chain.",
    "virtio 2.7.8, 2.8.4",
)
IRQ_ANNOUNCED = _queues.rule(
    "irq.announced",
    "Used elements are announced by an interrupt, where the driver wants one.",
    f"{_VDUSE}: VDUSE_VQ_INJECT_IRQ; virtio 2.7.7.2, 2.8.10",
)
IRQ_SUPPRESSED = _queues.rule(
    "irq.suppressed",
    "Where the driver wants no interrupt (flags, event index), none is injected.",
    "virtio 2.7.7.2, 2.8.10",
)
KICK_SUPPRESSED = _queues.rule(
    "kick.suppressed",
    "What is made available while the device wants no kick is served without one.",
    "virtio 2.7.10, 2.8.10",
)
CHAIN_LAYOUT = _queues.rule(
    "chain.layout",
    "A request may be split into descriptors in any way.",
    "virtio 2.7.4.1",
)
CHAIN_INDIRECT = _queues.rule(
    "chain.indirect",
    "Indirect descriptors are served, where they were negotiated.",
    "virtio 2.7.5.3, 2.8.7",
)
CHAIN_MALFORMED = _queues.rule(
    "chain.malformed",
    "A chain that no driver may make ends its request or stops the device until a reset, not "
    "the program.",
    "virtio 2.1.2 (DEVICE_NEEDS_RESET), 2.7.5",
)
QUEUE_EACH = _queues.rule(
    "queue.each", "Every virtqueue that is ready is served.", f"{_HEADER}: vduse_vq_info.ready"
)
QUEUE_LATE = _queues.rule(
    "queue.late-enable",
    "A virtqueue that becomes ready after DRIVER_OK is served from its first kick on.",
    f"{_HEADER}: vduse_vq_info.ready; no message tells of it",
)
QUEUE_START = _queues.rule(
    "queue.start",
    "A virtqueue starts where VDUSE_VQ_GET_INFO says, and its indices wrap.",
    f"{_HEADER}: vduse_vq_info.split, .packed",
)
STATE_DRAINED = _queues.rule(
    "state.drained",
    "After the answer to GET_VQ_STATE no more chains are used.",
    f"{_VDUSE}: VDUSE_GET_VQ_STATE; virtio 2.7.8",
)
STATE_INDEX = _queues.rule(
    "state.index",
    "The answer to GET_VQ_STATE is the position up to which chains were used.",
    f"{_HEADER}: vduse_vq_state_split, vduse_vq_state_packed",
)
STATE_UNKNOWN = _queues.rule(
    "state.unknown-queue",
    "GET_VQ_STATE of a virtqueue that does not exist is answered FAILED.",
    f"{_HEADER}: vduse_dev_request.vq_state.index",
)

_memory = _Part("Memory")
MEMORY_OUTSIDE = _memory.rule(
    "memory.outside",
    "Nothing is written outside the descriptors' buffers and the device's areas.",
    "virtio 2.7.5, 2.8.4",
)
MEMORY_READABLE = _memory.rule(
    "memory.device-readable",
    "Device-readable buffers and the driver's areas are never written.",
    "virtio 2.7.5.1, 2.8.3",
)
MEMORY_UNMAPPED = _memory.rule(
    "memory.unmapped",
    "A buffer at an IOVA that is not mapped is not accessed; its request does not succeed.",
    f"{_VDUSE}: VDUSE_IOTLB_GET_FD",
)
MEMORY_PERM = _memory.rule(
    "memory.permission",
    "A mapping whose perm is read-only is not written; such a request does not succeed.",
    f"{_HEADER}: vduse_iotlb_entry.perm",
)
IOTLB_UPDATE = _memory.rule(
    "iotlb.update",
    "After the answer to UPDATE_IOTLB the old mappings are not used any more.",
    f"{_VDUSE}: VDUSE_UPDATE_IOTLB",
)

IOTLB_IN_FLIGHT = _memory.rule(
    "iotlb.in-flight",
    "Requests in flight whose buffers stay mapped succeed, whatever other mappings change.",
    f"{_VDUSE}: VDUSE_UPDATE_IOTLB; each message covers all IOVAs",
)

_blk = _Part("Requests of virtio-blk")
BLK_STATUS = _blk.rule(
    "blk.status", "The last writable byte of a request is its status: 0, 1 or 2.", "virtio 5.2.6"
)
BLK_SUCCEEDS = _blk.rule(
    "blk.succeeds", "A legal request ends with VIRTIO_BLK_S_OK.", "virtio 5.2.6"
)
BLK_DATA = _blk.rule("blk.data", "A read gives what was written before.", "virtio 5.2.6")
BLK_UNSUPPORTED = _blk.rule(
    "blk.unsupported",
    "A request of an unknown type ends with VIRTIO_BLK_S_UNSUPP.",
    "virtio 5.2.6",
)
BLK_CAPACITY = _blk.rule(
    "blk.capacity", "A request beyond the capacity does not end with OK.", "virtio 5.2.6.1"
)
BLK_READ_ONLY = _blk.rule(
    "blk.read-only",
    "With VIRTIO_BLK_F_RO offered a write ends with VIRTIO_BLK_S_IOERR.",
    "virtio 5.2.6.2",
)
BLK_ZEROES = _blk.rule(
    "blk.write-zeroes",
    "What was written with zeroes reads as zeroes, where WRITE_ZEROES was negotiated.",
    "virtio 5.2.6",
)

_life = _Part("Reset and restart")
RESET_IRQ = _life.rule(
    "reset.irq",
    "After SET_STATUS(0) is answered no interrupt is injected.",
    f"{_VDUSE}: VDUSE_SET_STATUS; virtio 2.4.1",
)
RESET_MEMORY = _life.rule(
    "reset.memory",
    "After SET_STATUS(0) is answered no byte of the driver's memory is written.",
    "virtio 2.4.1",
)
RESET_AGAIN = _life.rule(
    "reset.again", "After a reset the device starts afresh.", "virtio 2.4.1, 3.1.1"
)
RECOVERY_ALL = _life.rule(
    "recovery.all",
    "Requests in flight when the program was killed are used after its restart.",
    f"{_VDUSE}: the device stays; a new program opens its node",
)
RECOVERY_ONCE = _life.rule("recovery.once", "Of these none is used twice.", "virtio 2.7.8")
RECOVERY_DATA = _life.rule(
    "recovery.data", "What they wrote reads back after the restart.", "virtio 5.2.6"
)
