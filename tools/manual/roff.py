"""Man pages (man(7))."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from tools.manual.commands import Entry, Page
from tools.manual.keys import Key, Keys

_ABOUT = (
    "A virtio device is written once and attached anywhere: to the VDUSE module of Linux, to a "
    "virtual machine over vhost-user, over NBD, or in one process with neither module nor root. "
    "Each command prints its options and examples with --help."
)
_ABOUT_KEYS = (
    "Values are KEY=VALUE,... or, but for --chardev, a JSON object. NODE is a node's name, or a "
    "node that is defined within, with dots: file.driver=file."
)
_ABOUT_SIGNALS = (
    "SIGTERM, SIGINT and SIGHUP end the daemon in order: what was taken is completed and flushed. "
    "A second one ends it at once."
)
_ABOUT_UNITS = (
    "The units are vduse-storage-daemon@NAME.service, which serves what /etc/vduse/NAME.toml says, "
    "vduse-nbd@NAME.socket and vduse-qmp@NAME.socket. READY=1 is sent once all exports are made "
    "and the monitors listen; signs of life for WatchdogSec= come while devices and monitors are "
    "answered."
)
#: A paragraph without text.
_NOTHING = "\\&"
_EXIT = (
    ("0", "all is well"),
    ("1", "what a command looked for is not in order, or a fault of vduse's"),
    ("2", "a mistake of the person's: one line says what to do"),
    ("128 + N", "ended by signal N"),
)


def overview(pages: Sequence[Page], apart: Page, version: str) -> str:
    """vduse(1): all commands; ``apart`` has a page of its own."""
    parts = [
        _head("VDUSE", version),
        _name("vduse", "vDPA devices in userspace: disks for containers and virtual machines"),
        ".SH SYNOPSIS\n.B vduse\n.I COMMAND\n[options]",
        f".SH DESCRIPTION\n{_paragraph(_ABOUT)}",
    ]
    for page in pages:
        if page != apart:
            parts += _section(page)
    parts += [
        f".SH COMMAND: {_text(apart.name.upper())}\n{_text(apart.summary)}: see\n"
        f".BR {_text(apart.name.replace(' ', '-'))} (1).",
        _exit(),
        ".SH SEE ALSO\n.BR vduse\\-storage\\-daemon (1)",
    ]
    return "\n".join(parts) + "\n"


def command(page: Page, tables: Iterable[Keys], version: str) -> str:
    """A command's own page."""
    name = page.name.replace(" ", "-")
    parts = [
        _head(name.upper(), version),
        _name(name, page.summary[0].lower() + page.summary[1:]),
        f".SH SYNOPSIS\n{_bold(page.synopsis)}",
        f".SH DESCRIPTION\n{_paragraph(page.description)}",
        ".SH OPTIONS",
        *map(_entry, page.entries),
        f".SH KEYS\n{_paragraph(_ABOUT_KEYS)}",
        *map(_keys, tables),
        f".SH SIGNALS\n{_paragraph(_ABOUT_SIGNALS)}",
        f".SH SYSTEMD\n{_paragraph(_ABOUT_UNITS)}",
        _exit(),
        _examples(page),
        ".SH SEE ALSO\n.BR vduse (1),\n.BR qemu\\-storage\\-daemon (1)",
    ]
    return "\n".join(parts) + "\n"


def _head(title: str, version: str) -> str:
    return (
        '.\\" Made from the command table by `make man`.\n'
        f'.TH {_text(title)} 1 "" "vduse {version}" "User Commands"'
    )


def _name(name: str, summary: str) -> str:
    return f".SH NAME\n{_paragraph(f'{name} - {summary}')}"


def _section(page: Page) -> list[str]:
    return [
        f".SH COMMAND: {_text(page.name.upper())}",
        f"{_text(page.summary)}.\n.PP\n{_bold(page.synopsis)}\n.PP",
        _paragraph(page.description),
        *map(_entry, page.entries),
        *[f".PP\n{_example(*each)}" for each in page.examples],
    ]


def _entry(entry: Entry) -> str:
    return f".TP\n{_bold(entry.term)}\n{_paragraph(entry.text)}"


def _keys(table: Keys) -> str:
    return "\n".join([f".SS {_text(table.title)}", *map(_key, table.keys)])


def _key(key: Key) -> str:
    note = key.note if key.default is None or not key.note else f"default: {key.note}"
    return f".TP\n{_bold(f'{key.name}={key.value}')}\n{_text(note) or _NOTHING}"


def _examples(page: Page) -> str:
    examples = "\n.PP\n".join(_example(*each) for each in page.examples)
    return f".SH EXAMPLES\n{examples}"


def _example(line: str, what: str) -> str:
    what = _paragraph(f"{what[0].upper()}{what[1:]}:")
    return f"{what}\n.PP\n.RS 4\n.nf\n{_bold(line)}\n.fi\n.RE"


def _exit() -> str:
    rows = "\n".join(f".TP\n.B {code}\n{_text(what)}" for code, what in _EXIT)
    return f".SH EXIT STATUS\n{rows}"


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _paragraph(text: str) -> str:
    """Lines that no formatter complains of, with room for what is escaped."""
    lines = textwrap.wrap(" ".join(text.split()), 64, break_on_hyphens=False)
    return "\n".join(map(_text, lines))


def _text(text: str) -> str:
    """Nothing in it is a request of roff's."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped
