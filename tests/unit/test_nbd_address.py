"""How an NBD export is spelled."""

from __future__ import annotations

import pytest

from vduse.backends.errors import BackendError
from vduse.backends.nbd.address import Address, Settings, Tcp, Tls, Unix, is_nbd, parse_address


@pytest.mark.parametrize(
    ("spec", "address"),
    [
        ("nbd:unix:/run/nbd.sock", Address(Unix("/run/nbd.sock"))),
        ("nbd:unix:/a,export=disk", Address(Unix("/a"), "disk")),
        ("nbd:store:10809", Address(Tcp("store", 10809))),
        ("nbd:[fe80::1]:7,export=", Address(Tcp("fe80::1", 7))),
        ("nbd://store", Address(Tcp("store", 10809))),
        ("nbd://store:7/my%20disk", Address(Tcp("store", 7), "my disk")),
        ("nbd://[::1]:7//abs", Address(Tcp("::1", 7), "/abs")),
        ("nbd+unix:///disk?socket=/run/n.sock", Address(Unix("/run/n.sock"), "disk")),
        (
            "nbd:h:1,reconnect-delay=2s,on-error=wait,open-timeout=500ms",
            Address(Tcp("h", 1), "", Settings(2.0, "wait", 0.5)),
        ),
        ("nbd:h:1,tls-certificates=/pki", Address(Tcp("h", 1), tls=Tls("/pki", "h"))),
        (
            "nbds+unix:///d?socket=/s&tls-certificates=/pki",
            Address(Unix("/s"), "d", tls=Tls("/pki", "localhost")),
        ),
        (
            "nbds://h/?tls-certificates=/pki&tls-hostname=store.example",
            Address(Tcp("h", 10809), tls=Tls("/pki", "store.example")),
        ),
        ("nbd://h:1?reconnect-delay=2s", Address(Tcp("h", 1), "", Settings(2.0))),
    ],
)
def test_spellings(spec: str, address: Address) -> None:
    assert is_nbd(spec)
    assert parse_address(spec) == address


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nbd:export=x=1", "names no server; as in nbd:unix:/run/nbd.sock"),
        ("nbd:store", "names no server"),
        ("nbd:store:0", "no port 0"),
        ("nbd:store:65536", "no port 65536"),
        ("nbd:store:010809", "no port 010809"),
        ("nbd:unix:", "names no socket"),
        (f"nbd:unix:/{'x' * 107}", "1 to 107 bytes"),
        ("nbd:h:1,reconect-delay=1s", "did you mean 'reconnect-delay'"),
        ("nbd:h:1,on-error=stop", "neither report nor wait"),
        ("nbd:h:1,reconnect-delay=5", "is not a time"),
        ("nbds://h/disk", "tls-certificates=/etc/pki/nbd"),
        ("nbd:h:1,tls-hostname=x", "tls-certificates=/etc/pki/nbd"),
        ("nbdx://h/disk", "no such scheme 'nbdx'"),
        ("nbd+unix:///disk", "name the socket"),
        ("nbd+unix://host/disk?socket=/a", "name the socket"),
        ("nbd://h/?socket=/a", "a socket goes with"),
        ("nbd://user@h/", "no user"),
        ("nbd:///disk", "names no host"),
        ("nbd://h:99999/", "Port out of range"),
    ],
)
def test_mistakes_are_named(spec: str, why: str) -> None:
    with pytest.raises(BackendError) as error:
        parse_address(spec)
    assert why in str(error.value)


@pytest.mark.parametrize("spec", ["null", "nbd", "nbd.img", "file:nbd:x", "/nbd:1"])
def test_other_backends_are_left_alone(spec: str) -> None:
    assert not is_nbd(spec)
