"""apt's configuration: where this machine gets Debian from, read from its own sources."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Names of Debian releases that move from codename to codename.
_MOVING = {"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"}


class AptError(Exception):
    """The machine's apt cannot serve here; the text says what to do."""


@dataclass(frozen=True)
class Source:
    """One archive of binary packages, as one stanza or line of apt's sources names it."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    #: Value of Signed-By: paths, fingerprints or a whole key block; empty: apt's trusted keys.
    signed_by: str = ""


def parse_deb822(text: str) -> Iterator[Source]:
    """Enabled binary sources of a ``.sources`` file (sources.list(5), deb822 style)."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines)):
        fields: dict[str, str] = {}
        for key, value in re.findall(r"^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE):
            fields[key.lower()] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "off", "0")
        if enabled and "deb" in fields.get("types", "").split():
            yield Source(
                tuple(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by", ""),
            )


def parse_one_line(text: str) -> Iterator[Source]:
    """Binary sources of a ``.list`` file (sources.list(5), one-line style)."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)([^#]*)", line)
        if found is None:
            continue
        options, uri, suite, components = found.groups()
        pairs = (option.partition("=") for option in shlex.split(options or ""))
        signed_by = {key.lower(): value for key, _, value in pairs}.get("signed-by", "")
        yield Source((uri,), (suite,), tuple(components.split()), signed_by.replace(",", " "))


def read_sources(etc: Path) -> list[Source]:
    """Every source below ``etc`` (/etc/apt), in apt's order."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            parse = parse_deb822 if path.suffix == ".sources" else parse_one_line
            found += parse(path.read_text())
    return found


def debian_archive(sources: list[Source], codename: str) -> Source:
    """The source that is Debian's own archive: this release's ``main``, signed with Debian's key.

    Raises:
        AptError: none is.
    """
    for source in sources:
        debian = not source.signed_by or "debian-archive" in source.signed_by
        of_release = {codename, *_MOVING} & set(source.suites)
        if of_release and "main" in source.components and debian and source.uris:
            return source
    raise AptError("apt's sources name no Debian archive: add this release's main component")


def sources_for(archive: Source, suite: str) -> str:
    """A ``.sources`` file with another suite of the same archive, package lists only."""
    signed_by = f"Signed-By: {archive.signed_by}\n" if archive.signed_by else ""
    return (
        f"Types: deb\nURIs: {archive.uris[0]}\nSuites: {suite}\nComponents: main\n"
        f"Architectures: amd64\nTargets: Packages\n{signed_by}"
    )
