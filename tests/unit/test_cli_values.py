"""Values of options, from their text."""

from __future__ import annotations

import pytest

from vduse.daemon.values import cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0,2-3", (0, 2, 3)), ("7,1", (7, 1)), ("4-4", (4,))]
)
def test_cpu_list(text: str, cpus: tuple[int, ...]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "-1", "0-", "3-2", "1,", "0-8192", "0-1-2"])
def test_what_is_no_cpu_list(text: str) -> None:
    with pytest.raises(ValueError) as error:
        cpu_list(text)
    assert str(error.value) == f"'{text}' is not a list of CPUs, for example 0,2-3"


def test_a_cpu_named_twice_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        cpu_list("0-2,1")
    assert str(error.value) == "'0-2,1' names a CPU twice"
