"""Writes the pages into the checkout."""

from __future__ import annotations

from tools.manual.files import ROOT, made

for path, text in made().items():
    (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
    (ROOT / path).write_text(text)
    print(path)
