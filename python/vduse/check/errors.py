"""Why a scenario ends before its last step. What was seen until then counts."""

from __future__ import annotations


class CheckError(Exception):
    """Base of them all; the text says why."""


class Stalled(CheckError):
    """The daemon did not do what it must; the rule has failed already."""


class Died(CheckError):
    """The daemon closed its node, or ended."""


class Broken(CheckError):
    """A message was not answered in time: the framework has given the device up, for good."""


class Stopped(CheckError):
    """Whoever wanted the check wants it no more."""


class Missed(CheckError):
    """The rest cannot be looked at here: nobody's mistake."""
