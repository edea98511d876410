"""QEMU's spellings of options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vduse.daemon.qmp.errors import ArgumentError
from vduse.daemon.storage.keyval import parse_flat, parse_object

_KEY = st.from_regex("[a-z][a-z0-9-]{0,8}", fullmatch=True)
#: A folder's keys are of one kind: what is within, or a value.
_TREE = st.recursive(
    st.text(), lambda inner: st.dictionaries(_KEY, inner, min_size=1, max_size=4), max_leaves=8
)


def _spelled(tree: dict[str, Any], path: str = "") -> list[str]:
    parts = []
    for key, value in tree.items():
        if isinstance(value, dict):
            parts += _spelled(value, f"{path}{key}.")
        else:
            parts.append(f"{path}{key}={value.replace(',', ',,')}")
    return parts


@given(st.dictionaries(_KEY, _TREE, min_size=1))
def test_what_was_spelled_is_read(tree: dict[str, Any]) -> None:
    assert parse_object(",".join(_spelled(tree)), "driver") == (tree, True)


@given(st.text())
def test_whatever_is_given_it_is_an_object_or_an_error(text: str) -> None:
    for parse in (parse_object, parse_flat):
        try:
            parse(text, "driver")
        except ArgumentError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("file", {"driver": "file"}),
        ("file,node-name=a", {"driver": "file", "node-name": "a"}),
        ("driver=file,node-name=a,", {"driver": "file", "node-name": "a"}),
        ("a=1,a=2", {"a": "2"}),
        ("cache.direct=on,cache.no-flush=off", {"cache": {"direct": "on", "no-flush": "off"}}),
        ("filename=a,,b,,", {"filename": "a,b,"}),
        ("filename=,,,,", {"filename": ",,"}),
        ("filename=", {"filename": ""}),
        ("filename=a=b", {"filename": "a=b"}),
        (",,x", {"driver": ",x"}),
    ],
)
def test_keys_and_values(text: str, values: dict[str, Any]) -> None:
    assert parse_object(text, "driver") == (values, True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("file,foo", "Expected '=' after parameter 'foo'"),
        ("file,=1", "Invalid parameter ''"),
        ("a..b=1", "Invalid parameter 'a..b'"),
        ("a.=1", "Invalid parameter 'a.'"),
        ("cache=1,cache.direct=on", "Parameters 'cache.*' used inconsistently"),
        ("a.b.c=1,a.b=2", "Parameters 'a.b.*' used inconsistently"),
        ('{"driver":', "JSON parse error, Input data was truncated"),
    ],
)
def test_what_is_neither(text: str, error: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        parse_object(text, "driver")
    assert str(refused.value) == error


def test_json_has_its_own_types() -> None:
    text = '{"driver": "null-co", "size": 512, "cache": {"direct": true}}'
    values = {"driver": "null-co", "size": 512, "cache": {"direct": True}}
    assert parse_object(text, "driver") == (values, False)


def test_the_older_spelling() -> None:
    text = "socket,id=c,path=/a,,b,server,nowait"
    assert parse_flat(text, "backend") == {
        "backend": "socket",
        "id": "c",
        "path": "/a,b",
        "server": "on",
        "wait": "off",
    }
    with pytest.raises(ArgumentError, match=r"Invalid parameter 'a\.b'"):
        parse_flat("socket,a.b=1", "backend")
