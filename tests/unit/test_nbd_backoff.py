"""How long the backend ``nbd`` waits before it makes a connection again."""

from __future__ import annotations

from vduse.backends.nbd.backoff import Backoff


def test_pauses_double_from_a_tenth_of_a_second_to_five() -> None:
    backoff = Backoff()
    pauses = [backoff.pause(0.0) for _ in range(9)]
    assert pauses == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_connection_that_is_lost_at_once_each_time_is_made_less_and_less_often() -> None:
    backoff, now, pauses = Backoff(), 0.0, list[float]()
    for _ in range(4):
        pauses.append(backoff.pause(now))
        backoff.made(now)
        now += 0.9
    assert pauses == [0.0, 0.1, 0.2, 0.4]


def test_one_that_has_lasted_is_made_again_at_once() -> None:
    backoff = Backoff()
    assert [backoff.pause(0.0), backoff.pause(0.0)] == [0.0, 0.1]
    backoff.made(1.0)
    assert [backoff.pause(2.0), backoff.pause(2.0)] == [0.0, 0.1]
