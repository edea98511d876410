"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "limited", "missing"]


@dataclass(frozen=True)
class Check:
    """``how`` says how to get what is limited or missing; empty where all is well."""

    name: str
    state: State
    detail: str
    how: str = ""


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, "ok", detail)


def limited(name: str, detail: str, how: str) -> Check:
    """Works, with less than the host could give."""
    return Check(name, "limited", detail, how)


def missing(name: str, detail: str, how: str) -> Check:
    """Not here."""
    return Check(name, "missing", detail, how)
