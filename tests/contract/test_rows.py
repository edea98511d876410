"""The suite holds every row of docs/kernel-behaviour.md, and knows nothing but the ports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.contract.page import contract_rows, difference_rows, linux_rows_under_run

HERE = Path(__file__).parent
#: What makes the platforms.
PLATFORMS = {
    f"{stem}.py"
    for stem in (
        "child_block",
        "child_driver",
        "child_program",
        "conftest",
        "embedded",
        "embedded_program",
        "kernel",
        "kernel_disk",
        "kernel_program",
        "local_program",
        "nursery",
        "run",
        "run_program",
        "vhost_opener",
    )
}
#: What all other files may import of ours.
ALLOWED = {
    "tests.contract",
    "vduse.bus.driver",
    "vduse.channel.base",
    "vduse.control",
    "vduse.testing.arena",
    "vduse.testing.rings",
}


def written_tests() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every test of the suite, with its file's name."""
    for path in sorted(HERE.glob("test_*.py")):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path.name, node


def marked_rows(test: ast.FunctionDef) -> set[str]:
    """The rows of a test's ``row`` marks."""
    return {
        argument.value
        for mark in test.decorator_list
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row"
        for argument in mark.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def rows() -> list[str]:
    """The page's rows."""
    return [*contract_rows(), *difference_rows()]


def test_every_row_has_a_test() -> None:
    covered = {row for _, test in written_tests() for row in marked_rows(test)}
    assert [row for row in rows() if row not in covered] == []


def test_every_test_shows_a_row_of_the_page() -> None:
    known = set(rows())
    assert len(known) > 100
    wrong = [
        f"{name}: {test.name}"
        for name, test in written_tests()
        if not marked_rows(test) or marked_rows(test) - known
    ]
    assert wrong == []


def test_no_row_stands_twice_but_among_the_differences() -> None:
    assert len(contract_rows()) == len(set(contract_rows()))
    assert len(difference_rows()) == len(set(difference_rows()))


def test_only_intended_differences_are_left_out_anywhere() -> None:
    """What runs where is chosen by the page (conftest.py); a mark must not choose otherwise."""
    assert linux_rows_under_run()
    assert set(linux_rows_under_run()) <= set(difference_rows())
    assert [row for row in contract_rows() if row.startswith("difference.")] == []
    of_this_process = [
        test
        for _, test in written_tests()
        if any(ast.unparse(mark) == "pytest.mark.where('process')" for mark in test.decorator_list)
    ]
    assert of_this_process
    for test in of_this_process:
        assert marked_rows(test) <= set(difference_rows()), test.name


def test_tests_know_the_ports_only() -> None:
    wrong = []
    for path in HERE.glob("*.py"):
        if path.name in PLATFORMS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            ours = node.module.startswith(("vduse", "tests"))
            if ours and not any(
                node.module == allowed or node.module.startswith(allowed + ".")
                for allowed in ALLOWED
            ):
                wrong.append(f"{path.name}: {node.module}")
    assert wrong == []
