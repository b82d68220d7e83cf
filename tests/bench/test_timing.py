"""Ratios: of what stood side by side in time."""

from __future__ import annotations

import pytest

from codecllm.bench.timing import Effort, Ratio, Times, collect


def test_a_ratio_is_that_of_its_own_round():
    # A machine that becomes four times slower after each round: medians of seconds would say 1.
    times = Times({"dense": (2.0, 8.0, 32.0), "ours": (1.0, 4.0, 8.0)})
    speed = times.speed("ours", "dense")
    assert (speed.low, speed.median, speed.high) == (2.0, 2.0, 3.0)
    assert times.median("dense") == 8.0 and times.rounds == 3
    assert times.speed("dense", "dense") == Ratio(1.0, 1.0, 1.0)


def test_one_round_has_a_ratio_too():
    assert Times({"a": (1.0,), "b": (3.0,)}).speed("a", "b") == Ratio(3.0, 3.0, 3.0)


def recorder(names):
    calls = []

    def side(name):
        def call():
            calls.append(name)
            return 1.0

        return call

    return calls, {name: side(name) for name in names}


def test_everybody_begins_a_round_in_turn():
    calls, sides = recorder("abc")
    found = collect(sides, Effort(rounds=3, seconds=0.0))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"  # warm-up first
    assert {name: len(taken) for name, taken in found.seconds.items()} == dict.fromkeys("abc", 3)


@pytest.mark.parametrize(("rounds", "seconds", "most", "done"), [(4, 0, 9, 4), (2, 1e9, 5, 5)])
def test_rounds_are_at_least_and_at_most(rounds, seconds, most, done):
    _, sides = recorder("a")
    assert collect(sides, Effort(rounds, seconds, most)).rounds == done
