"""The NBD handshake without I/O: NBD protocol document, "Handshake phase" and "Option types"."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nbd_client import (
    FLAGS,
    GO,
    GREETING,
    Answer,
    answers,
    contexts,
    export_facts,
    info,
    kinds,
    option,
    string,
)
from vduse.control.nbd import OPTS_MAGIC, Info, Option, Reply, TransmissionFlag
from vduse.exports.nbd import handshake
from vduse.exports.nbd.export import Export, sendable
from vduse.exports.nbd.handshake import MAX_OPTION_DATA, Agreed, Ended, Handshake

SIZE = 64 << 20
SERVED = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
DISK = Export("disk0", SIZE, SERVED, "a disk for tests")


def feed(shake: Handshake, data: bytes) -> bytes:
    """Sends all of it, as far as it is taken before the end; what is left."""
    while data and shake.outcome is None:
        step = shake.wanted
        shake.receive(data[:step])
        data = data[step:]
    return data


def begun(flags: bytes = FLAGS, export: Export = DISK) -> Handshake:
    """A handshake behind the greeting and the client's flags."""
    shake = Handshake(lambda: [export])
    assert shake.take_output() == GREETING
    feed(shake, flags)
    assert not shake.output
    return shake


def ask(shake: Handshake, *options: bytes) -> list[Answer]:
    """The replies to some options."""
    assert feed(shake, b"".join(options)) == b""
    return answers(shake.take_output())


def refused(shake: Handshake, asked: bytes, kind: Reply) -> str:
    """One error, and the handshake goes on; its message."""
    [answer] = ask(shake, asked)
    assert (answer.option, answer.kind) == (struct.unpack_from(">I", asked, 8)[0], kind)
    assert shake.outcome is None
    return answer.data.decode()


STRUCTURED = option(Option.STRUCTURED_REPLY)


# --- greeting and client flags ---------------------------------------------------------------


def test_unknown_client_flags_end_the_connection() -> None:
    shake = begun(struct.pack(">I", 3 | 1 << 5))
    assert shake.outcome == Ended("unknown client flags 0x20")


def test_without_fixed_newstyle_only_export_name_is_known() -> None:
    shake = begun(struct.pack(">I", 0))
    feed(shake, option(Option.LIST))
    assert shake.outcome == Ended("option 3 without FIXED_NEWSTYLE")
    shake = begun(struct.pack(">I", 0))
    feed(shake, option(Option.EXPORT_NAME, b""))
    assert shake.take_output() == struct.pack(">QH", SIZE, SERVED) + bytes(124)
    assert shake.outcome == Agreed(structured=False, base_allocation=False, export="disk0")


# --- EXPORT_NAME -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "disk0"])
def test_export_name(name: str) -> None:
    shake = begun()
    feed(shake, option(Option.EXPORT_NAME, name.encode()))
    assert shake.take_output() == struct.pack(">QH", SIZE, SERVED)
    assert shake.outcome == Agreed(structured=False, base_allocation=False, export="disk0")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"other", "no export 'other'"),
        (b"\xff", "export name is not UTF-8"),
        (b"a\0b", "export name with a zero byte"),
        (bytes(4097), "export name of more than 4096 bytes"),
        (bytes(MAX_OPTION_DATA + 1), f"export name of {MAX_OPTION_DATA + 1} bytes"),
    ],
)
def test_export_name_can_only_be_refused_by_closing(name: bytes, reason: str) -> None:
    shake = begun()
    feed(shake, option(Option.EXPORT_NAME, name))
    assert shake.outcome == Ended(reason)
    assert not shake.output


# --- ABORT, LIST, STARTTLS, unknown ones -----------------------------------------------------


def test_abort_is_acknowledged() -> None:
    shake = begun()
    assert ask(shake, option(Option.ABORT)) == [Answer(Option.ABORT, Reply.ACK, b"")]
    assert shake.outcome == Ended("")


def test_list_names_the_export_and_describes_it() -> None:
    shake = begun()
    assert ask(shake, option(Option.LIST)) == [
        Answer(Option.LIST, Reply.SERVER, string("disk0") + b"a disk for tests"),
        Answer(Option.LIST, Reply.ACK, b""),
    ]
    assert refused(shake, option(Option.LIST, b"x"), Reply.ERR_INVALID) == (
        "this option takes no data"
    )


@pytest.mark.parametrize("number", [4, Option.STARTTLS, Option.EXTENDED_HEADERS, 12, 0, 1 << 31])
def test_what_is_not_served_is_refused_and_the_handshake_goes_on(number: int) -> None:
    shake = begun()
    for data in (b"", b"something"):
        refused(shake, option(number, data), Reply.ERR_UNSUP)
    ask(shake, GO)
    assert shake.outcome == Agreed(structured=False, base_allocation=False, export="disk0")


# --- INFO and GO -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_info_and_go_tell_the_same(number: Option) -> None:
    shake = begun()
    wanted = (Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE, 77)
    found = ask(shake, option(number, info("", *wanted)))
    assert {answer.option for answer in found} == {number}
    assert [answer.data for answer in found] == [
        struct.pack(">HQH", Info.EXPORT, SIZE, SERVED),
        struct.pack(">H", Info.NAME) + b"disk0",
        struct.pack(">H", Info.DESCRIPTION) + b"a disk for tests",
        struct.pack(">HIII", Info.BLOCK_SIZE, 512, 4096, 32 << 20),
        b"",
    ]
    assert kinds(found) == [Reply.INFO] * 4 + [Reply.ACK]
    agreed = Agreed(structured=False, base_allocation=False, export="disk0")
    assert shake.outcome == (agreed if number is Option.GO else None)


def test_go_without_requests_tells_size_and_block_sizes() -> None:
    found = ask(begun(), option(Option.GO, info("disk0")))
    assert [answer.data[:2] for answer in found] == [b"\0\0", b"\0\3", b""]


def test_size_is_that_of_the_moment() -> None:
    sizes = iter((SIZE, 2 * SIZE))
    shake = Handshake(lambda: [Export("disk0", next(sizes), SERVED)])
    shake.take_output()
    feed(shake, FLAGS)
    assert export_facts(ask(shake, option(Option.INFO, info(""))))[0] == SIZE
    assert export_facts(ask(shake, option(Option.GO, info(""))))[0] == 2 * SIZE


def test_df_is_offered_with_structured_replies_only() -> None:
    shake = begun()
    before = export_facts(ask(shake, option(Option.INFO, info(""))))[1]
    ask(shake, STRUCTURED)
    after = export_facts(ask(shake, option(Option.GO, info(""))))[1]
    assert after ^ before == TransmissionFlag.SEND_DF
    assert after & TransmissionFlag.SEND_DF


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_unknown_name_is_refused_and_another_may_be_tried(number: Option) -> None:
    shake = begun()
    assert refused(shake, option(number, info("other")), Reply.ERR_UNKNOWN) == "no export 'other'"
    assert kinds(ask(shake, option(number, info("disk0"))))[-1] is Reply.ACK


MALFORMED_INFO = [
    (b"", "the data ends too early"),
    (b"\0\0\0", "the data ends too early"),
    (string("disk0"), "the data ends too early"),
    (struct.pack(">I", 0xFFFFFFFF) + b"disk0", "the data ends too early"),
    (string("disk0") + b"\0\2\0\0", "the data ends too early"),
    (info("disk0") + b"\0", "1 bytes too many"),
    (info(b"\xc3\x28"), "export name is not UTF-8"),
    (info(b"disk0\0"), "export name with a zero byte"),
    (info(b"d" * 4097), "export name of more than 4096 bytes"),
]


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
@pytest.mark.parametrize(("data", "why"), MALFORMED_INFO)
def test_malformed_info_and_go(number: Option, data: bytes, why: str) -> None:
    assert refused(begun(), option(number, data), Reply.ERR_INVALID) == why


# --- structured replies and metadata contexts ------------------------------------------------


def test_structured_reply() -> None:
    shake = begun()
    for _ in range(2):  # asking again changes nothing
        assert kinds(ask(shake, STRUCTURED)) == [Reply.ACK]
    refused(shake, option(Option.STRUCTURED_REPLY, b"x"), Reply.ERR_INVALID)
    ask(shake, GO)
    assert shake.outcome == Agreed(structured=True, base_allocation=False, export="disk0")


CONTEXT_0 = struct.pack(">I", 0) + b"base:allocation"
CONTEXT_1 = struct.pack(">I", 1) + b"base:allocation"


@pytest.mark.parametrize(
    ("queries", "listed"),
    [
        ((), [CONTEXT_0]),
        (("base:",), [CONTEXT_0]),
        (("base:allocation", "base:"), [CONTEXT_0]),
        (("qemu:", "qemu:dirty-bitmap:x"), []),
        (("base:alloc", "base", "Base:"), []),
    ],
)
def test_list_meta_context(queries: tuple[str, ...], listed: list[bytes]) -> None:
    shake = begun()
    ask(shake, STRUCTURED)
    found = ask(shake, option(Option.LIST_META_CONTEXT, contexts("disk0", *queries)))
    assert [answer.data for answer in found] == [*listed, b""]
    assert kinds(found) == [Reply.META_CONTEXT] * len(listed) + [Reply.ACK]
    ask(shake, GO)
    assert shake.outcome == Agreed(structured=True, base_allocation=False, export="disk0")


@pytest.mark.parametrize(
    ("queries", "chosen"),
    [
        (("base:allocation",), [CONTEXT_1]),
        (("no:such", "base:allocation", "base:allocation"), [CONTEXT_1]),
        (("base:",), []),  # a wildcard is for listing
        ((), []),
    ],
)
def test_set_meta_context(queries: tuple[str, ...], chosen: list[bytes]) -> None:
    shake = begun()
    ask(shake, STRUCTURED)
    found = ask(shake, option(Option.SET_META_CONTEXT, contexts("", *queries)))
    assert [answer.data for answer in found] == [*chosen, b""]
    ask(shake, GO)
    assert shake.outcome == Agreed(structured=True, base_allocation=bool(chosen), export="disk0")


@pytest.mark.parametrize(
    "then",
    [
        option(Option.SET_META_CONTEXT, contexts("")),
        option(Option.SET_META_CONTEXT, contexts("other", "base:allocation")),
        option(Option.SET_META_CONTEXT, b"?"),
    ],
)
def test_a_later_choice_replaces_the_first_even_where_it_fails(then: bytes) -> None:
    shake = begun()
    ask(shake, STRUCTURED, option(Option.SET_META_CONTEXT, contexts("", "base:allocation")), then)
    ask(shake, GO)
    assert shake.outcome == Agreed(structured=True, base_allocation=False, export="disk0")


def test_contexts_are_those_of_the_name_they_were_chosen_for() -> None:
    shake = begun()
    ask(shake, STRUCTURED, option(Option.SET_META_CONTEXT, contexts("disk0", "base:allocation")))
    ask(shake, GO)  # of ""
    assert shake.outcome == Agreed(structured=True, base_allocation=False, export="disk0")


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_contexts_need_structured_replies(number: Option) -> None:
    asked = option(number, contexts("", "base:allocation"))
    assert refused(begun(), asked, Reply.ERR_INVALID) == "structured replies come first"


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (contexts("other", "base:"), Reply.ERR_UNKNOWN),
        (b"", Reply.ERR_INVALID),
        (string(""), Reply.ERR_INVALID),
        (string("") + struct.pack(">I", 0xFFFFFFFF), Reply.ERR_INVALID),
        (contexts("", "base:") + b"x", Reply.ERR_INVALID),
        (contexts("", b"\x80"), Reply.ERR_INVALID),
        (contexts("", "q" * 4097), Reply.ERR_INVALID),
    ],
)
def test_malformed_contexts(number: Option, data: bytes, kind: Reply) -> None:
    shake = begun()
    ask(shake, STRUCTURED)
    refused(shake, option(number, data), kind)


# --- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [Option.GO, Option.LIST, 99])
def test_oversized_data_is_skipped(number: int) -> None:
    shake = begun()
    data = bytes(3 * MAX_OPTION_DATA + 5)
    assert refused(shake, option(number, data), Reply.ERR_TOO_BIG) == (
        "more than 65536 bytes of data"
    )
    ask(shake, GO)
    assert isinstance(shake.outcome, Agreed)


def test_bytes_of_a_client_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_BYTES", 100_000)
    shake = begun()
    feed(shake, struct.pack(">QII", OPTS_MAGIC, Option.LIST, 0xFFFFFFFF) + bytes(200_000))
    assert shake.outcome == Ended("more than 100000 bytes before transmission")


def test_options_of_a_client_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "MAX_OPTIONS", 3)
    shake = begun()
    assert len(ask(shake, *[option(99)] * 3)) == 3
    feed(shake, option(99))
    assert shake.outcome == Ended("more than 3 options")


def test_option_without_its_magic_ends_the_connection() -> None:
    shake = begun()
    feed(shake, b"GET / HTTP/1.1\r\n\r\n")
    assert shake.outcome == Ended("an option begins with 0x474554202f204854")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", ""),
        (option(Option.LIST), ""),
        (GO[:7], "it went away in the middle of an option"),
        (GO[:16], "it went away in the middle of an option"),
        (GO[:-1], "it went away in the middle of an option"),
    ],
)
def test_client_that_goes_away(sent: bytes, reason: str) -> None:
    shake = begun()
    feed(shake, sent)
    shake.receive(b"")
    assert shake.outcome == Ended(reason)


def test_nothing_of_the_transmission_phase_is_taken() -> None:
    shake = begun()
    assert feed(shake, GO + b"request") == b"request"
    assert shake.wanted == 0
    with pytest.raises(ValueError, match="at most 0 are wanted"):
        shake.receive(b"request")


# --- properties ------------------------------------------------------------------------------

OPTIONS = st.one_of(
    st.builds(
        option,
        st.sampled_from([*Option, 4, 77]),
        st.one_of(
            st.binary(max_size=40),
            st.builds(info, st.sampled_from(["", "disk0", "x"]), st.integers(0, 9)),
            st.builds(contexts, st.sampled_from(["", "disk0", "x"]), st.sampled_from(["base:"])),
        ),
    ),
    st.sampled_from([STRUCTURED, GO, option(99, bytes(MAX_OPTION_DATA + 1))]),
)


@given(st.lists(OPTIONS, max_size=8), st.data())
def test_delivery_in_pieces_changes_nothing(options: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(options)
    whole = begun()
    left = feed(whole, sent)
    pieces = begun()
    rest = sent
    while rest and pieces.outcome is None:
        length = data.draw(st.integers(1, pieces.wanted))
        pieces.receive(rest[:length])
        rest = rest[length:]
    assert rest == left
    assert pieces.outcome == whole.outcome
    assert pieces.take_output() == whole.take_output()


def test_byte_by_byte() -> None:
    shake = begun()
    for byte in STRUCTURED + option(Option.SET_META_CONTEXT, contexts("", "base:allocation")) + GO:
        shake.receive(bytes([byte]))
    assert shake.outcome == Agreed(structured=True, base_allocation=True, export="disk0")


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("disk0", "disk0"),
        ("é ü", "é ü"),
        ("d\udcff.img", "d\ufffd.img"),  # a path that is not UTF-8
        ("a\0b", "a\ufffdb"),
        ("é" * 3000, "é" * 2048),
        ("x" + "é" * 3000, "x" + "é" * 2047),
    ],
)
def test_any_text_can_be_sent_as_a_string(text: str, sent: str) -> None:
    assert sendable(text) == sent


@given(st.lists(st.one_of(OPTIONS, st.binary(max_size=64)), max_size=8))
def test_whatever_is_sent_is_answered_or_ends_the_connection(sent: list[bytes]) -> None:
    shake = begun()
    feed(shake, b"".join(sent))
    output = shake.take_output()
    if shake.outcome is None:
        assert shake.wanted > 0
        assert all(answer.kind in set(Reply) for answer in answers(output))
    assert len(output) <= 300 * len(sent) + 300


# --- TLS: proto.md, "TLS support", FORCEDTLS ------------------------------------------------------


def forced() -> Handshake:
    """One whose server requires TLS, behind the client's flags."""
    shake = Handshake(lambda: [DISK], requires_tls=True)
    feed(shake, FLAGS)
    shake.take_output()
    return shake


@pytest.mark.parametrize(
    "asked",
    [GO, option(Option.LIST), option(Option.STRUCTURED_REPLY), option(77, b"x")],
)
def test_nothing_is_told_before_tls(asked: bytes) -> None:
    refused(forced(), asked, Reply.ERR_TLS_REQD)


def test_an_export_name_before_tls_ends_the_connection() -> None:
    shake = forced()
    feed(shake, option(Option.EXPORT_NAME, b"disk0"))
    assert isinstance(shake.outcome, Ended)
    assert not shake.output


def test_what_follows_starttls_belongs_to_the_session() -> None:
    shake = forced()
    begin = option(Option.STARTTLS)
    assert feed(shake, begin) == b""
    assert kinds(answers(shake.take_output())) == [Reply.ACK]
    assert shake.starts_tls
    assert shake.wanted == 0
    shake.go_on()
    refused(shake, begin, Reply.ERR_UNSUP)
    assert feed(shake, GO) == b""
    assert isinstance(shake.outcome, Agreed)


def test_starttls_takes_no_data() -> None:
    refused(forced(), option(Option.STARTTLS, b"x"), Reply.ERR_INVALID)
    shake = forced()
    feed(shake, option(Option.STARTTLS))
    shake.receive(b"")  # it has gone
    assert isinstance(shake.outcome, Ended)
