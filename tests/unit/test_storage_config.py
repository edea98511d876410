"""The storage daemon's TOML file: every mistake is found, at its line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules.tree import ROOT
from tests.unit.test_storage_options import NoControl
from vduse.daemon.main import main
from vduse.daemon.storage.config.check import check
from vduse.daemon.storage.config.lines import find_lines
from vduse.daemon.storage.daemon import Daemon, OptionError

GOOD = """\
# Any order will do.
[monitor.m0]
chardev = "qmp"
[chardev.qmp]
backend = "socket"
path = "qmp.sock"
server = true
wait = false
[export.e0]
type = "nbd"
node-name = "top"
[nbd-server]
addr = {type = "unix", path = "nbd.sock"}
[blockdev.top]
driver = "throttle"
throttle-group = "tg0"
file = "middle"
[blockdev.middle]
driver = "raw"
file.driver = "null-co"
file.size = 1048576
[object.tg0]
qom-type = "throttle-group"
limits = {iops-total = 100}
"""

#: Each line that has a mistake says which, after a number sign.
BAD = """\
pidfile = 7  # Invalid parameter type for 'pidfile', expected: string
metrics = "9123"  # Parameter 'metrics': '9123' is no address: use 127.0.0.1:9123, [::1]:9123 or \
unix:PATH
log-level = "warn"  # Parameter 'log-level': 'warn' is none of error, warning, info, debug, \
did you mean 'warning'?
trace-json = ""  # Parameter 'trace-json': '' is no path
log-fromat = "json"  # 'log-fromat' is unexpected, did you mean 'log-format'?

[chardv.qmp]  # 'chardv' is unexpected, did you mean 'chardev'?
path = "qmp.sock"

[object.tg0]
qom-type = "throttle-group"
limits = {iops-total = 100, iops-totl = 7}  # Parameter 'limits.iops-totl' is unexpected, \
did you mean 'limits.iops-total'?

[blockdev.disk0]
driver = "file"
filename = "disk.img"
aio = "natve"  # Parameter 'aio' does not accept value 'natve', did you mean 'native'?

[blockdev.disk1]  # Parameter 'filename' is missing
driver = "file"
read-only = true

[blockdev.slow]
driver = "throttle"
throttle-group = "tg1"  # there is no throttle-group 'tg1', did you mean 'tg0'?
file.driver = "null-co"
file.size = 100  # Parameter 'size' expects a multiple of 512 above 0

[blockdev.round]  # node 'round' lies on itself
driver = "raw"
file = "round"

[export.e0]
type = "nbd"  # NBD server not running: [nbd-server] is missing
node-name = "disk2"  # there is no node 'disk2', did you mean 'disk1'?

[export.e1]
type = "vduse-blk"
node-name = "disk1"
name = "d"
writable = true  # Cannot export read-only node as writable
num-queues = 0 = 0  # Expected newline or end of document after a statement

[export.e2]  # VDUSE device 'd' is export 'e1' already
type = "vduse-blk"
node-name = "slow"
name = "d"
"""


def _expected(text: str) -> list[tuple[int, str]]:
    lines = [line.partition("  # ") for line in text.splitlines()]
    return [(number, told) for number, (_, _, told) in enumerate(lines, 1) if told]


def test_all_mistakes_are_found_at_once_with_their_lines() -> None:
    expected = _expected(BAD)
    assert len(expected) >= 10
    assert [(at.line, at.text) for at in check(BAD).mistakes] == expected


def test_what_lies_below_is_made_first() -> None:
    checked = check(GOOD)
    assert checked.mistakes == ()
    names = [
        (kind, table.value.get("node-name", table.value.get("id")))
        for kind, table in checked.options
    ]
    assert names == [
        ("object", "tg0"),
        ("blockdev", "middle"),
        ("blockdev", "top"),
        ("nbd-server", None),
        ("export", "top"),
        ("chardev", "qmp"),
        ("monitor", "m0"),
    ]


def test_the_daemon_is_made_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    daemon = Daemon(NoControl(), check(GOOD).options)
    assert [export.id for export in daemon.store.exports] == ["e0"]
    daemon.close()


def test_the_command_tells_and_its_exit_code_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.toml", tmp_path / "good.toml"
    bad.write_text(BAD)
    good.write_text(GOOD)
    assert main(["storage-daemon", "--check", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: no mistake\n"
    assert main(["storage-daemon", "--check", str(bad)]) == 1
    told = [f"{bad}:{line}: {text}" for line, text in _expected(BAD)]
    assert capsys.readouterr().out.splitlines() == told
    assert main(["storage-daemon", "--check", str(bad), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert [(at["line"], at["text"]) for at in facts["mistakes"]] == _expected(BAD)
    assert main(["storage-daemon", "--config", str(bad)]) == 2
    assert told[-1] in capsys.readouterr().err
    assert main(["storage-daemon", "--check", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("[export]\ne0 = 5", 2, "'export.e0' is a table: [export.e0]"),
        ("object = 5", 1, "'object' is a table of tables: [object.NAME]"),
        ("\n[blockdev.a]\nnode-name = 'b'\ndriver='null-co'", 3, "is the table's name already"),
        ("[blockdev.0]\ndriver = 'null-co'", 1, "Invalid node-name: '0'"),
        ("[blockdev.a]\ndriver = 'null-co'\nsize = 1979-05-27", 3, "expected: integer"),
        ("[monitor.m]\n\nchardev = 'c'", 3, "there is no chardev 'c'"),
        ("x = [\n1,", 2, "Invalid value"),
        ("[a\n[b]", 1, "Expected ']'"),
        ("[object.s]\nqom-type='secret'\ndata='x'\n[object.s]", 4, "Cannot declare"),
    ],
)
def test_a_mistake(text: str, line: int, told: str) -> None:
    found = check(text).mistakes
    assert any(at.line == line and told in at.text for at in found), found


_DISK = '[blockdev.b]\ndriver = "null-co"\n'
_VDUSE = f'{_DISK}[export.e]\ntype = "vduse-blk"\nnode-name = "b"\n'


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (f"{_VDUSE}name = 'd'\nqueue-size = 1000", "queue-size: 1000 is not a power of two"),
        (f"{_VDUSE}name = 'd'\nqueue-size = 1", "between 4 and 32768"),
        (f"{_VDUSE}name = 'd'\nqueue-size = 65536", "between 4 and 32768"),
        (f"{_VDUSE}name = 'd'\nqueue-size = 0", "between 4 and 32768"),
        (f"{_VDUSE}name = 'd'\nnum-queues = 65536", "num-queues must be from 1 to 65535"),
        (f"{_VDUSE}name = 'd'\nserial = '{'x' * 21}'", "is not at most 20 ASCII characters"),
        (f"{_VDUSE}name = 'd'\nlogical-block-size = 700", "logical-block-size: 700 is not a power"),
        (f"{_VDUSE}name = '../x'", "cannot be a file's name below /dev/vduse"),
        (f"{_VDUSE}name = ''", "is not 1 to 255 bytes long"),
        (
            f"{_VDUSE.replace('vduse-blk', 'vhost-user-blk')}"
            "addr = {type = 'unix', path = 's'}\nlogical-block-size = 700",
            "logical-block-size: 700 is not a power of two between 512 and 2097152",
        ),
        ("[blockdev.b]\ndriver = 'file'\nfilename = ''", "'filename' expects a path"),
        ('[blockdev.b]\ndriver = "host_device"\nfilename = "a\\u0000"', "'filename' expects"),
        ("[nbd-server]\naddr = {type = 'inet', host = 'h', port = '70000'}", "no port 70000"),
    ],
)
def test_what_the_start_refuses_by_the_values_alone(table: str, told: str) -> None:
    (found,) = check(table).mistakes
    assert told in found.text
    assert found.line == table.count("\n") + 1


@pytest.mark.parametrize(
    ("metrics", "address"),
    [
        ("unix:m.sock", "{type = 'unix', path = 'm.sock'}"),
        ("127.0.0.1:9123", "{type = 'inet', host = '127.0.0.1', port = '9123'}"),
    ],
)
def test_metrics_have_their_socket_for_themselves(metrics: str, address: str) -> None:
    place = metrics.removeprefix("unix:")
    (found,) = check(f"metrics = '{metrics}'\n[nbd-server]\naddr = {address}").mistakes
    assert (found.line, found.text) == (3, f"socket '{place}' is that of metrics already")


def test_an_unexpected_key_does_not_hide_what_is_wrong_with_others() -> None:
    text = f"{_VDUSE}name = 'd'\nqueue-size = 1000\nseriall = ''\n"
    assert [(at.line, at.text.partition(" is ")[0]) for at in check(text).mistakes] == [
        (7, "queue-size: 1000"),
        (8, "Parameter 'seriall'"),
    ]


_GROUP = '[object.g]\nqom-type = "throttle-group"\n'
_IMAGE = '[blockdev.t]\ndriver = "qcow2"\nfile = "b"\n'


@pytest.mark.parametrize(
    "user",
    [
        'driver = "throttle"\nthrottle-group = "g"\nfile = "b"',
        'driver = "raw"\noffset = 512\nfile = "b"',
        'driver = "throttle"\nthrottle-group = "g"\nfile = {driver = "raw", file = "b"}',
    ],
)
def test_a_node_that_another_has_for_itself(user: str) -> None:
    text = f"{_GROUP}{_DISK}[blockdev.n]\n{user}"
    line = text.count("\n") + 1
    (found,) = check(f"{text}\n{_IMAGE}").mistakes
    assert found.text == "Node 'b' is used as 't's child: use 't'"
    assert found.line == line
    with pytest.raises(OptionError, match="Node 'b' is "):
        Daemon(NoControl(), check(f"{text}\n{_IMAGE}").options).close()


def test_a_node_that_two_have_for_themselves() -> None:
    text = f'{_DISK}{_IMAGE}[blockdev.n]\ndriver = "qcow2"\nfile = "b"'
    (found,) = check(text).mistakes
    assert found.text == "Node 'b' is used as 't's child: use 't'"
    assert found.line == text.count("\n") + 1


def test_an_export_of_what_a_node_has_for_itself() -> None:
    alias = '[blockdev.r]\ndriver = "raw"\nfile = "b"\n'
    export = '[export.e]\ntype = "vduse-blk"\nname = "d"\nnode-name = '
    assert check(f'{_DISK}{_IMAGE}{alias}{export}"t"').mistakes == ()
    for name in ("b", "r"):
        (found,) = check(f'{_DISK}{_IMAGE}{alias}{export}"{name}"').mistakes
        assert found.text == "Node 'b' is used as 't's child: use 't'"


def test_what_fails_at_the_start_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "disks.toml"
    file.write_text('# A disk.\n[blockdev.a]\ndriver = "file"\nfilename = "/none/disk"\n')
    assert main(["storage-daemon", "--config", str(file)]) == 2
    told = f"vduse: error: {file}:2: Could not open '/none/disk': No such file or directory\n"
    assert capsys.readouterr().err == told


@settings(deadline=None)
@given(st.text() | st.text(alphabet="[]{}=.,#\"'\n ab1-"))
def test_any_text_is_checked(text: str) -> None:
    check(text)


_KEY = st.text(alphabet="abc-. \"'#\\\u00e9", min_size=1, max_size=4)
_SCALAR = st.integers(-9, 9) | st.booleans() | st.text(alphabet="ab\"'\\\n#[]{},= ", max_size=6)
_VALUE = st.recursive(
    _SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(_KEY, st.dictionaries(_KEY, _VALUE, max_size=3), max_size=3), st.data())
def test_the_scanner_sees_what_tomllib_sees(document: dict[str, Any], data: st.DataObject) -> None:
    text = "".join(
        f"# x\n[{_quoted(name)}]\n"
        + "".join(f"{_quoted(key)} = {_written(value, data)} # ]\n" for key, value in table.items())
        for name, table in document.items()
    )
    assert tomllib.loads(text) == document
    lines = find_lines(text)
    assert set(lines) == set(_paths(document, ""))
    # No key has a line's end in it, so that is a header.
    for name in document:
        assert text.split("\n")[lines[name] - 1] == f"[{_quoted(name)}]" or "." in name


def test_lines_of_arrays_of_tables() -> None:
    lines = find_lines("[[a]]\nb = 1\n\n[[a]]\nb = 2\n[a.c]\nd.e = [\n1, # ]\n'''\n]''', 3]\n")
    assert lines == {
        "a": 1,
        "a.0": 1,
        "a.0.b": 2,
        "a.1": 4,
        "a.1.b": 5,
        "a.1.c": 6,
        "a.1.c.d": 7,
        "a.1.c.d.e": 7,
        "a.1.c.d.e.0": 8,
        "a.1.c.d.e.1": 9,
        "a.1.c.d.e.2": 10,
    }


def _quoted(text: str) -> str:
    return json.dumps(text)


def _written(value: Any, data: st.DataObject) -> str:
    if isinstance(value, dict):
        pairs = (f"{_quoted(key)} = {_written(inner, data)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        gap = data.draw(st.sampled_from(["", " ", "\n", " # [\n"]))
        return f"[{gap}" + f",{gap}".join(_written(inner, data) for inner in value) + f"{gap}]"
    if isinstance(value, str) and "'" not in value and data.draw(st.booleans()):
        return f"'''\n{value}'''"
    if isinstance(value, str) and data.draw(st.booleans()):
        return '"""\n' + json.dumps(value)[1:-1].replace("\\n", "\n") + '"""'
    return json.dumps(value, ensure_ascii=False)


def _paths(value: Any, path: str) -> list[str]:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in inner:
        where = f"{path}.{key}" if path else str(key)
        found.append(where)
        if isinstance(each, dict | list):
            found += _paths(each, where)
    return found


def test_the_pages_file_and_its_mistakes() -> None:
    page = (ROOT / "docs/storage-daemon.md").read_text()
    good = page.partition("```toml\n")[2].partition("```")[0]
    assert check(good).mistakes == ()
    bad = good.replace('filename = "/srv', 'aio = "natve", filename = "/srv')
    bad = bad.replace('node-name = "disk0"', 'node-name = "disk1"')
    told = "".join(f"disks.toml:{at.line}: {at.text}\n" for at in check(bad).mistakes)
    assert f"$ vduse storage-daemon --check disks.toml\n{told}```" in page
