"""ARCHITECTURE.md's table of rooms holds, in Python and in Rust."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.rooms import python_violations, reach, read_rooms, rust_violations
from tests.rules.tree import ROOT

TABLE = """
| room | what | may import |
|---|---|---|
| `python/vduse/control` | tables | nothing of ours |
| `python/vduse/channel` | ports | control |
| `python/vduse/framework` | kernel | channel |
| `python/vduse/device` | device | channel |
| `python/vduse/daemon` | commands | everything |
| `rust/mem` | memory | - |
| `rust/device` | device | mem |
| `rust/framework` | framework | mem |
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "ARCHITECTURE.md").write_text(TABLE)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_python_imports_follow_the_table() -> None:
    assert python_violations(ROOT) == []


def test_rust_dependencies_follow_the_table() -> None:
    assert rust_violations(ROOT) == []


@pytest.mark.parametrize("side", ["python", "rust"])
def test_device_and_framework_never_reach_each_other(side: str) -> None:
    allowed: dict[str, set[str]] = getattr(read_rooms(ROOT), side)
    assert "framework" not in reach(allowed, "device")
    assert "bus" not in reach(allowed, "device")
    assert "device" not in reach(allowed, "framework")


def test_every_room_of_the_table_exists() -> None:
    rooms = read_rooms(ROOT)
    assert [r for r in rooms.python if not (ROOT / "python/vduse" / r).is_dir()] == []
    assert [r for r in rooms.rust if not (ROOT / "rust" / r).is_dir()] == []


@pytest.mark.parametrize(
    "line",
    [
        "import vduse.framework.node",
        "from vduse.framework import Framework",
        "from vduse import framework",
        "from ..framework import Framework",
        "from .. import framework",
        "def f():\n    from vduse.framework.node import Node",
    ],
)
def test_forbidden_python_import_is_found(tree: Path, line: str) -> None:
    write(tree, "python/vduse/device/x.py", line)
    [found] = python_violations(tree)
    assert found.endswith("device may not import framework")


def test_allowed_python_imports_pass(tree: Path) -> None:
    write(
        tree,
        "python/vduse/device/x.py",
        "import vduse\nfrom vduse import _native, __version__\nfrom vduse.control import abi\n"
        "from vduse.channel.base import Channel\nfrom . import y\nimport vduse.device.y\n",
    )
    write(tree, "python/vduse/daemon/x.py", "import vduse.framework, vduse.device")
    assert python_violations(tree) == []


def test_unknown_room_is_found(tree: Path) -> None:
    write(tree, "python/vduse/attic/x.py", "")
    write(tree, "rust/attic/Cargo.toml", "")
    assert len(python_violations(tree)) == 1
    assert len(rust_violations(tree)) == 1


@pytest.mark.parametrize("table", ["dependencies", "dev-dependencies"])
def test_forbidden_rust_dependency_is_found(tree: Path, table: str) -> None:
    write(tree, "rust/device/Cargo.toml", f"[{table}]\nvduse-mem.workspace = true\n")
    assert rust_violations(tree) == []
    write(tree, "rust/device/Cargo.toml", f"[{table}]\nvduse-framework.workspace = true\n")
    assert rust_violations(tree) == ["rust/device/Cargo.toml: device may not depend on framework"]
