"""What pages tell a reader to type or to write is understood: command lines of ours, the storage
daemon's files, the Kubernetes manifest, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.manual.keys import MODELS

from tests.rules.test_tour import PAGES, blocks
from tests.rules.tree import ROOT, files
from vduse.daemon.cli import parse
from vduse.daemon.commands import TABLE, StorageDaemonOptions
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.arguments import read
from vduse.daemon.storage.commands import OPTIONS
from vduse.daemon.storage.config.check import check
from vduse.daemon.storage.keyval import parse_flat, parse_object

IMPLIED = {"monitor": "chardev", **{name: row.implied for name, row in OPTIONS.items()}}
MANIFESTS = sorted(ROOT.glob("docs/guides/*.yaml"))
#: Blocks of commands, with prompts or without; what they print is beside.
_LANGUAGES = ("sh", "text", "console")
#: Words of a line that come before the program.
_BEFORE = re.compile(r"^\s*(?:[#$] |ExecStart\w*=[+-]*|sudo |while |until |! )*")
#: Not what it prints: ``vduse 0.1.0``.
_OURS = re.compile("vduse [a-z-]")
#: Stands for any words: what a page leaves to its reader.
_ANY = re.compile(r"\.\.\.|\[|<|COMMAND|\||\$\(")


def command_lines(page: str) -> Iterator[str]:
    """Those of ours, whole."""
    for language in _LANGUAGES:
        for block in blocks(page, language):
            for line in block.replace("\\\n", " ").splitlines():
                stripped = _BEFORE.sub("", line).split(" && ")[0]
                stripped = (
                    re.split(r"\s*;|\s+(?:#|&$|>|2>|\|)", stripped)[0].removesuffix("&").strip()
                )
                if _OURS.match(stripped) and not _ANY.search(stripped):
                    yield stripped


def command_mistakes(line: str) -> list[str]:
    """What is wrong with a line, values of the storage daemon's options included."""
    words = shlex.split(line)[1:]
    if words in (["--help"], ["--version"]) or words[-1] == "--help":
        return []
    try:
        options = parse(TABLE, words).options
    except UserError as error:
        return [str(error)]
    found = option_mistakes(options) if isinstance(options, StorageDaemonOptions) else []
    behind = getattr(options, "program", ())
    if behind[:1] == ("vduse",):
        found += command_mistakes(shlex.join(behind))
    return found


def option_mistakes(options: StorageDaemonOptions) -> list[str]:
    found = []
    for name, text in options.objects:
        if name == "chardev":
            raw, strings = parse_flat(text, "backend"), True
        else:
            raw, strings = parse_object(text, IMPLIED.get(name))
        _, mistakes = read(raw, MODELS[name], strings=strings)
        found += [f"--{name} {text}: {mistake.text}" for mistake in mistakes]
    return found


def configurations(page: str) -> list[str]:
    """The storage daemon's files on a page; parts of one are whole by themselves."""
    return [body for body in blocks(page, "toml") if "[" in body]


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


@pytest.mark.parametrize(
    ("page", "line"),
    [
        pytest.param(page, line, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, line in enumerate(command_lines(page.read_text()), 1)
    ],
)
def test_command_lines_are_understood(page: Path, line: str) -> None:
    assert command_mistakes(line) == [], line


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, body in enumerate(configurations(page.read_text()), 1)
    ],
)
def test_files_of_the_storage_daemon_have_no_mistake(body: str) -> None:
    assert check(body).mistakes == ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#:\s]+)(#[^)]*)?\)", text)
    missing = [target for target, _ in targets if not (page.parent / target).exists()]
    assert missing == []
    for target, anchor in targets:
        if anchor and target.endswith(".md"):
            assert anchor[1:] in anchors((page.parent / target).read_text()), f"{target}{anchor}"


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    linked = {target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in files(ROOT, ".md", under="docs")}
    assert {page for page in pages if not page.startswith("decisions/")} - {"README.md"} <= linked


def anchors(page: str) -> set[str]:
    """Of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_together(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in documents)
    there = {(each["kind"], each["metadata"]["name"]) for each in documents}
    for document in documents:
        if document["kind"] == "ConfigMap":
            for name, text in document["data"].items():
                assert not name.endswith(".toml") or check(text).mistakes == (), name
        if document["kind"] != "DaemonSet":
            continue
        template = document["spec"]["template"]
        labels = document["spec"]["selector"]["matchLabels"]
        assert labels.items() <= template["metadata"]["labels"].items()
        pod = template["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
        for container in containers(pod):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= set(volumes)
            for argv in argvs(container):
                assert [line for line in lines_of(argv) if command_mistakes(line)] == []


def argvs(container: dict[str, Any]) -> Iterator[list[str]]:
    """What a container runs, and its probes."""
    yield [*container.get("command", []), *container.get("args", [])]
    probes = [container.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness")]
    for hook in (*probes, container.get("lifecycle", {}).get("postStart")):
        if hook is not None:
            yield hook["exec"]["command"]


def lines_of(argv: list[str]) -> Iterator[str]:
    """Of ours: itself, or what it has a shell run."""
    if argv[:2] == ["sh", "-c"]:
        yield from command_lines(f"```sh\n{argv[2]}\n```\n")
    elif argv[0] == "vduse":
        yield shlex.join(argv)


def test_a_command_line_is_taken_whole() -> None:
    page = "```text\n# vduse blk a \\\n    --nbd s &\nvduse dev list  # all\nvduse blk ...\n```\n"
    assert list(command_lines(page)) == ["vduse blk a      --nbd s", "vduse dev list"]


def test_mistakes_in_a_command_line_are_found() -> None:
    assert command_mistakes("vduse blk a --nbdd s")
    assert command_mistakes("vduse storage-daemon --blockdev driver=file,filname=x")
    assert command_mistakes("vduse run -- vduse blk a --nbdd s")
    assert not command_mistakes("vduse storage-daemon --monitor c --blockdev null-co,node-name=n")
