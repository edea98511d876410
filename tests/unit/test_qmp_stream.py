"""JSON values out of a stream of bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.qmp.stream import MAX_DEPTH, MAX_LENGTH, JsonStream

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def _fed(*pieces: bytes) -> list[bytes | str]:
    stream = JsonStream()
    values = [value for piece in pieces for value in stream.feed(piece)]
    return [str(value) if isinstance(value, QmpError) else value for value in values]


@given(st.lists(st.dictionaries(st.text(), _JSON)), st.data())
def test_values_are_the_same_however_they_arrive(values: list[Any], data: st.DataObject) -> None:
    ascii_only = data.draw(st.booleans())
    text = "".join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
    whole = text.encode("utf-8", "surrogatepass")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = _fed(*pieces)
    assert b"".join(value for value in found if isinstance(value, bytes)) == whole
    assert len(found) == len(values)


@given(st.lists(st.binary(max_size=40)))
def test_garbage_ends_with_its_line(pieces: list[bytes]) -> None:
    assert _fed(*pieces, b'\x01"\n', b'{"a": 1}')[-1] == b'{"a": 1}'


def test_nothing_but_space_is_nothing() -> None:
    assert _fed(b" \r\n\t", b"\n") == []


def test_values_of_one_line_are_apart() -> None:
    assert _fed(b'{"a":{}}[1]"x"12 null\n') == [b'{"a":{}}', b"[1]", b'"x"', b"12", b"null"]


def test_brackets_and_quotes_in_a_string_are_none() -> None:
    assert _fed(b'{"a": "}]\\"{"}') == [b'{"a": "}]\\"{"}']


def test_an_escape_cut_in_two() -> None:
    assert _fed(b'{"a\\', b'"": 1}') == [b'{"a\\"": 1}']


def test_a_closer_of_another_kind_is_an_error() -> None:
    assert _fed(b'{"a": ]}]}\n{}') == ["JSON parse error, stray ']'", b"{}"]


def test_a_control_character_in_a_string_is_an_error() -> None:
    expected = ["JSON parse error, control character in a string", b"{}"]
    assert _fed(b'{"a": "b\n{}') == expected
    assert _fed(b'{"a": "b\0"}\n{}') == expected


def test_depth_is_bounded() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert _fed(deep) == [deep]
    assert _fed(b"[" * 10_000 + b"]" * 10_000 + b"\n{}") == [
        "JSON nesting depth limit exceeded",
        b"{}",
    ]


def test_length_is_bounded() -> None:
    limit = f"JSON value of more than {MAX_LENGTH} bytes"
    longest = b'"' + b"x" * (MAX_LENGTH - 2) + b'"'
    assert _fed(longest) == [longest]
    assert _fed(longest[:-1], b'x"') == [limit]
    assert _fed(*[b'{"a": "'] + [b"x" * 65536] * 64, b'"}\n{}') == [limit, b"{}"]
    assert _fed(*[b"7" * 65536] * 64, b"\n{}") == [limit, b"{}"]
