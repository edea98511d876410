"""What is known about each rule: reached or not, and the evidence where it was broken."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vduse.check.rules import RULES, Rule

State = Literal["passed", "failed", "not reached"]

#: Pieces of evidence that are kept for one rule.
MOST_EVIDENCE = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """One rule's."""

    rule: Rule
    state: State
    #: Where it failed: what shows it, some lines each. Where it was not reached: why, one line.
    detail: tuple[str, ...] = ()
    #: How often it was broken.
    broken: int = 0


class Ledger:
    """Collects while scenarios run. Thread-safe: a tap writes here, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reached: set[str] = set()
        self._evidence: dict[str, list[str]] = {}
        self._broken: dict[str, int] = {}
        self._missed: dict[str, str] = {}

    def reach(self, *rules: Rule) -> None:
        """The daemon was in the situation that they are about."""
        with self._lock:
            self._reached |= {rule.id for rule in rules}

    def fail(self, rule: Rule, evidence: str) -> None:
        """The daemon broke it; ``evidence`` is for a person, one or more lines."""
        with self._lock:
            self._reached.add(rule.id)
            self._broken[rule.id] = self._broken.get(rule.id, 0) + 1
            kept = self._evidence.setdefault(rule.id, [])
            if len(kept) < MOST_EVIDENCE:
                kept.append(evidence)

    def miss(self, rules: Sequence[Rule], why: str) -> None:
        """They could not be looked at; the first reason stays."""
        with self._lock:
            for rule in rules:
                self._missed.setdefault(rule.id, why)

    def failed(self, rule: Rule) -> bool:
        """Whether it is known to be broken."""
        with self._lock:
            return rule.id in self._broken

    @property
    def failures(self) -> int:
        """Rules that are known to be broken."""
        with self._lock:
            return len(self._broken)

    def verdicts(self) -> list[Verdict]:
        """Every rule of the table, in its order."""
        with self._lock:
            return [self._verdict(rule) for rule in RULES.values()]

    def _verdict(self, rule: Rule) -> Verdict:
        broken = self._broken.get(rule.id, 0)
        if broken:
            return Verdict(rule, "failed", tuple(self._evidence[rule.id]), broken)
        if rule.id in self._reached:
            return Verdict(rule, "passed")
        why = self._missed.get(rule.id, "nothing led there")
        return Verdict(rule, "not reached", (why,))
