"""Cases of test_nbd_protocol.py, run by the system's interpreter with libnbd's Python module:

/usr/bin/python3 libnbd_cases.py CASE URI
"""

import errno
import os
import sys

import nbd

SIZE = 16 << 20
BLOCK = 512
LARGEST = 32 << 20
CONTEXT = nbd.CONTEXT_BASE_ALLOCATION


def opened(uri, *, opt_mode=False, structured=True, contexts=(), strict=True, name=None):
    """A handle, connected."""
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    for context in contexts:
        h.add_meta_context(context)
    if not strict:
        h.set_strict_mode(0)
    if name is not None:
        h.set_uri_allow_local_file(True)
    h.set_opt_mode(opt_mode)
    h.connect_uri(uri)
    if name is not None:
        h.set_export_name(name)
    return h


def refused(number, call, *args, **kwargs):
    """The call fails with this errno."""
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == number, error
        return
    raise AssertionError("it was not refused")


def whole(h):
    """The connection still works."""
    data = os.urandom(4 * BLOCK)
    h.pwrite(data, SIZE - len(data))
    assert h.pread(len(data), SIZE - len(data)) == data


# --- handshake -------------------------------------------------------------------------------


def case_facts(uri):
    h = opened(uri)
    assert h.get_size() == SIZE
    assert h.get_protocol() == "newstyle-fixed"
    assert h.get_structured_replies_negotiated()
    for can in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "df", "multi_conn"):
        assert getattr(h, "can_" + can)(), can
    assert not h.is_read_only()
    assert not h.is_rotational()
    assert h.get_block_size(nbd.SIZE_MINIMUM) == BLOCK
    assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == LARGEST
    h.shutdown()


def case_oldest_clients_get_export_name(uri):
    for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
        h = nbd.NBD()
        h.set_handshake_flags(flags)
        h.connect_uri(uri)
        assert h.get_protocol() == "newstyle"
        assert h.get_size() == SIZE
        whole(h)


def case_list(uri):
    h = opened(uri, opt_mode=True)
    found = []
    assert h.opt_list(lambda name, description: found.append((name, description))) == 1
    assert found == [("disk0", "sixteen MiB")]
    h.opt_abort()


def case_info_and_go_by_name(uri):
    h = opened(uri, opt_mode=True, name="other")
    h.set_full_info(True)
    refused(errno.ENOENT, h.opt_info)
    refused(errno.ENOENT, h.opt_go)
    for name in ("", "disk0"):
        h.set_export_name(name)
        h.opt_info()
        assert h.get_size() == SIZE
        assert h.get_canonical_export_name() == "disk0"
        assert h.get_export_description() == "sixteen MiB"
    h.opt_go()
    whole(h)


def case_meta_contexts(uri):
    h = opened(uri, opt_mode=True)

    def listed(*queries):
        h.clear_meta_contexts()
        for query in queries:
            h.add_meta_context(query)
        found = []
        assert h.opt_list_meta_context(found.append) == len(found)
        return found

    assert listed() == listed("base:") == listed("x:", CONTEXT) == [CONTEXT]
    assert listed("x:", "base:alloc", "q" * 4000) == []
    h.clear_meta_contexts()
    for context in (CONTEXT, "qemu:dirty-bitmap:x"):
        h.add_meta_context(context)
    h.opt_go()
    assert h.can_meta_context(CONTEXT)
    assert not h.can_meta_context("qemu:dirty-bitmap:x")
    whole(h)


def case_abort(uri):
    h = opened(uri, opt_mode=True)
    h.opt_abort()
    assert h.aio_is_closed()


# --- transmission ----------------------------------------------------------------------------


def _commands(h):
    data = os.urandom(1 << 20)
    h.pwrite(data, 0)
    assert h.pread(1 << 20, 0) == data
    h.pwrite(data[:BLOCK], BLOCK, nbd.CMD_FLAG_FUA)
    assert h.pread(BLOCK, BLOCK) == data[:BLOCK]
    h.flush()
    h.cache(1 << 20, 0)
    h.trim(1 << 16, 0)
    h.trim(1 << 16, 1 << 16, nbd.CMD_FLAG_FUA)
    h.zero(1 << 16, 1 << 17)
    h.zero(1 << 16, 3 << 16, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    h.zero(1 << 16, 1 << 18, nbd.CMD_FLAG_FAST_ZERO)
    refused(errno.ENOTSUP, h.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    for offset in (1 << 17, 3 << 16, 1 << 18):
        assert h.pread(1 << 16, offset) == bytes(1 << 16), offset
    assert h.pread(1 << 16, 5 << 16) == data[5 << 16 : 6 << 16]


def case_commands_with_simple_replies(uri):
    h = opened(uri, structured=False)
    assert not h.can_df()
    _commands(h)


def case_commands_with_structured_replies(uri):
    h = opened(uri)
    _commands(h)
    data = h.pread(1 << 20, 0)
    for flags in (0, nbd.CMD_FLAG_DF):
        assert _chunks(h, 1 << 20, 0, flags) == [(data, 0, nbd.READ_DATA)]


def _chunks(h, count, offset, flags):
    found = []

    def take(subbuf, at, status, _error):
        found.append((bytes(subbuf), at, status))

    h.pread_structured(count, offset, take, flags)
    return found


def _status(h, count, offset, flags=0):
    found = []

    def take(context, at, entries, _error):
        assert (context, at) == (CONTEXT, offset)
        found.extend(zip(entries[::2], entries[1::2], strict=True))

    h.block_status(count, offset, take, flags)
    return found


def case_block_status(uri):
    h = opened(uri, contexts=[CONTEXT])
    h.pwrite(os.urandom(1 << 20), 0)
    hole = nbd.STATE_HOLE | nbd.STATE_ZERO
    h.zero(1 << 18, 1 << 18)
    expected = [(1 << 18, 0), (1 << 18, hole), (1 << 19, 0)]
    assert _status(h, 1 << 20, 0) == expected
    assert _status(h, 1 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == expected[:1]
    assert _status(h, 1 << 16, 3 << 17) == [(1 << 16, hole)]
    h.pwrite(bytes(BLOCK), 1 << 18)
    # A page of the disk in memory.
    assert _status(h, 1 << 18, 1 << 18) == [(4096, 0), ((1 << 18) - 4096, hole)]


def case_block_status_was_not_negotiated(uri):
    h = opened(uri, strict=False)
    refused(errno.EINVAL, h.block_status, BLOCK, 0, lambda *_: 0)
    whole(h)


def case_largest_requests(uri):
    # The disk is smaller than the largest request: refused for its end, not for its length.
    h = opened(uri, strict=False)
    refused(errno.EINVAL, h.pread, LARGEST, 0)
    refused(errno.ENOSPC, h.pwrite, bytes(LARGEST), 0)
    data = os.urandom(SIZE)
    h.pwrite(data, 0)
    assert h.pread(SIZE, 0) == data


def case_many_at_once(uri):
    h = opened(uri)
    data = os.urandom(1 << 20)
    pieces = range(0, len(data), 4096)
    out = [
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data[at : at + 4096])), at)
        for at in pieces
    ]
    _finish(h, out)
    buffers = [nbd.Buffer(4096) for _ in pieces]
    _finish(h, [h.aio_pread(buffer, at) for buffer, at in zip(buffers, pieces, strict=True)])
    assert b"".join(bytes(buffer.to_bytearray()) for buffer in buffers) == data


def _finish(h, cookies):
    for cookie in cookies:
        while not h.aio_command_completed(cookie):
            h.poll(-1)


# --- clients that ask for too much -----------------------------------------------------------


def case_malformed_requests_are_answered(uri):
    for structured in (True, False):
        h = opened(uri, structured=structured, contexts=[CONTEXT], strict=False)
        for call in (h.pread, h.trim, h.zero):
            refused(errno.EINVAL, call, BLOCK, 1)
            refused(errno.EINVAL, call, BLOCK + 1, 0)
            refused(errno.EINVAL, call, 0, 0)
        refused(errno.EINVAL, h.pwrite, bytes(BLOCK), 7)
        refused(errno.EINVAL, h.pwrite, bytes(BLOCK - 1), 0)
        refused(errno.EINVAL, h.pread, BLOCK, SIZE)
        refused(errno.EINVAL, h.pread, 2 * BLOCK, SIZE - BLOCK)
        refused(errno.EINVAL, h.pread, BLOCK, (1 << 63) - BLOCK)
        refused(errno.EINVAL, h.trim, BLOCK, SIZE)
        refused(errno.ENOSPC, h.pwrite, bytes(2 * BLOCK), SIZE - BLOCK)
        refused(errno.ENOSPC, h.zero, BLOCK, SIZE)
        for flags in (nbd.CMD_FLAG_REQ_ONE, 1 << 7, 1 << 15):
            refused(errno.EINVAL, h.pread, BLOCK, 0, flags)
            refused(errno.EINVAL, h.pwrite, bytes(BLOCK), 0, flags)
            refused(errno.EINVAL, h.flush, flags)
        whole(h)


def case_write_that_is_too_long(uri):
    h = opened(uri, strict=False)
    refused(errno.ENOSPC, h.pwrite, bytes(SIZE + BLOCK), 0)
    whole(h)


def case_read_only(uri):
    h = opened(uri, strict=False, contexts=[CONTEXT])
    assert h.is_read_only()
    assert not h.can_trim()
    assert not h.can_zero()
    assert h.can_multi_conn()
    refused(errno.EPERM, h.pwrite, bytes(BLOCK), 0)
    refused(errno.EPERM, h.trim, BLOCK, 0)
    refused(errno.EPERM, h.zero, BLOCK, 0)
    assert h.pread(BLOCK, 0) == bytes(BLOCK)
    h.flush()
    assert _status(h, 1 << 20, 0) == [(1 << 20, nbd.STATE_HOLE | nbd.STATE_ZERO)]


def case_flood(uri):
    """Until killed."""
    h = opened(uri)
    data = nbd.Buffer.from_bytearray(bytearray(os.urandom(1 << 20)))
    open_ones = [h.aio_pwrite(data, at << 20) for at in range(8)]
    print("begun", flush=True)
    while True:
        while not h.aio_command_completed(open_ones[0]):
            h.poll(-1)
        open_ones = [*open_ones[1:], h.aio_pwrite(data, 0)]


if __name__ == "__main__":
    globals()["case_" + sys.argv[1]](sys.argv[2])
