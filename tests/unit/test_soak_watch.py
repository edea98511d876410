"""The soak's verdict: what grows is found, what only warms up is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.model import Model
from tests.soak.watch import Sample, count_threads, growth


def run(pss: list[int], fds: list[int]) -> dict[str, bool]:
    samples = [Sample(p, p, f, 10) for p, f in zip(pss, fds, strict=True)]
    return {name: row["flat"] for name, row in growth(samples).items()}


def test_a_warm_up_is_no_growth() -> None:
    pss = [50_000 + min(step, 30) * 1000 for step in range(100)]
    assert all(run(pss, [40] * 100).values())


def test_memory_that_grows_on_is_found() -> None:
    pss = [100_000 + 300 * step for step in range(100)]
    assert run(pss, [40] * 100) == {
        "pss_kib": False,
        "rss_kib": False,
        "fds": True,
        "threads": True,
    }


def test_one_fd_more_is_found() -> None:
    assert not run([100_000] * 100, [40 + step // 70 for step in range(100)])["fds"]


def test_the_model_knows_what_was_written_and_what_it_cannot_know() -> None:
    model = Model(4096)
    model.written(0, b"a" * 512, 512)
    model.check("d", 0, b"a" * 512)
    with pytest.raises(AssertionError, match="d: sector 0"):
        model.check("d", 0, b"b" * 512)
    model.written(0, b"c" * 512, -5)  # either is right now
    model.check("d", 0, b"a" * 512)
    model.written(512, b"d" * 512, 512)
    model.forget(512, 512)
    model.check("d", 512, bytes(512))
    model.resize(512)
    model.resize(1024)
    model.check("d", 512, bytes(512))


def test_io_uring_threads_of_the_kernel_are_not_ours(tmp_path: Path) -> None:
    for task, name in enumerate(("python", "vduse-worker-0", "iou-wrk-123", "iou-wrk-123")):
        (tmp_path / str(task)).mkdir()
        (tmp_path / str(task) / "comm").write_text(f"{name}\n")
    (tmp_path / "ended").mkdir()
    assert count_threads(tmp_path) == 2
