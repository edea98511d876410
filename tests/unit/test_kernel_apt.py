"""The test bed's reading of apt's sources, in both of their formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.apt import (
    AptError,
    Source,
    debian_archive,
    parse_deb822,
    parse_one_line,
    read_sources,
    sources_for,
)

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN = Source(("http://mirror.test/debian",), ("bookworm",), ("main",), KEYRING)

DEB822 = f"""\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian
 http://other.test/debian
# a comment between fields
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: {KEYRING}

Types: deb
Enabled: no
URIs: http://off.test/debian
Suites: bookworm
Components: main
\t
types: deb-src
uris: http://source.test/debian
suites: bookworm
components: main
"""


def test_deb822_enabled_binary_stanzas() -> None:
    [source] = parse_deb822(DEB822)
    assert source == Source(
        ("http://mirror.test/debian", "http://other.test/debian"),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        KEYRING,
    )


def test_deb822_key_block_is_kept_as_it_is() -> None:
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: u\nSuites: s\nComponents: main\nSigned-By:\n {key}\n"
    [source] = parse_deb822(text)
    assert source.signed_by == key


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("deb http://a.test/debian sid main contrib # end", (("sid",), ("main", "contrib"), "")),
        (
            f"  deb [arch=amd64 signed-by={KEYRING}] http://a.test/debian bookworm main",
            (("bookworm",), ("main",), KEYRING),
        ),
        (
            "deb [ Signed-By=/a.gpg,/b.gpg ] http://a.test/debian bookworm main",
            (("bookworm",), ("main",), "/a.gpg /b.gpg"),
        ),
    ],
)
def test_one_line_source(line: str, source: tuple[tuple[str, ...], tuple[str, ...], str]) -> None:
    assert list(parse_one_line(line)) == [Source(("http://a.test/debian",), *source)]


@pytest.mark.parametrize("line", ["", "# deb u s main", "deb-src u s main", "nonsense"])
def test_one_line_without_a_binary_source(line: str) -> None:
    assert list(parse_one_line(line)) == []


def test_sources_are_read_in_apts_order(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb u1 s main\n")
    (parts / "b.list").write_text("deb u3 s main\n")
    (parts / "a.sources").write_text("Types: deb\nURIs: u2\nSuites: s\nComponents: main\n")
    (parts / "c.list.disabled").write_text("deb u4 s main\n")
    assert [source.uris for source in read_sources(tmp_path)] == [("u1",), ("u2",), ("u3",)]


@pytest.mark.parametrize(
    "other",
    [
        Source(("http://mirror.test/debian-security",), ("bookworm-security",), ("main",), KEYRING),
        Source(("http://vendor.test/",), ("bookworm",), ("main",), "/usr/share/keyrings/v.gpg"),
        Source(("http://mirror.test/debian",), ("bookworm",), ("contrib",), KEYRING),
    ],
)
def test_archive_is_not_taken_for_another(other: Source) -> None:
    assert debian_archive([other, DEBIAN], "bookworm") is DEBIAN
    with pytest.raises(AptError, match="name no Debian archive"):
        debian_archive([other], "bookworm")


def test_archive_without_a_named_key() -> None:
    source = Source(("http://mirror.test/debian",), ("stable",), ("main",))
    assert debian_archive([source], "bookworm") is source
    assert "Signed-By" not in sources_for(source, "sid")


def test_own_sources_name_one_suite_of_the_same_archive() -> None:
    [source] = parse_deb822(sources_for(DEBIAN, "sid"))
    assert source == Source(DEBIAN.uris, ("sid",), ("main",), KEYRING)
