"""Makes the table of docs/conformance.md from the rules: ``python -m vduse.check.page``."""

from __future__ import annotations

from vduse.check.rules import RULES

BEGIN = "<!-- from vduse.check.rules: python -m vduse.check.page -->"
END = "<!-- end -->"


def table() -> str:
    """All rules in Markdown, a table a part, between the marks that the page has them in."""
    lines = [BEGIN]
    part = ""
    for rule in RULES.values():
        if rule.part != part:
            part = rule.part
            lines += [
                "",
                f"### {part}",
                "",
                "| rule | a daemon that keeps it | source |",
                "|---|---|---|",
            ]
        lines.append(f"| `{rule.id}` | {rule.sentence} | {rule.source} |")
    return "\n".join([*lines, "", END])


if __name__ == "__main__":
    print(table())
