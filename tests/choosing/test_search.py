"""The search against times that are known exactly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.choosing.budget.bisection import MAX_TIMED, TOLERANCE, search


class Model:
    """A choice is a size from 0 to `steps`; what it takes bends away from a straight line."""

    def __init__(self, *, least: float, bend: float = 1.0, steps: int = 1000) -> None:
        self.least, self.bend, self.steps = least, bend, steps
        self.timed: list[int] = []

    def choose(self, share: float) -> list[int]:
        assert 0 <= share <= 1
        return [int(share * self.steps)]

    def fraction(self, choice: list[int]) -> float:
        return self.least + (1 - self.least) * (choice[0] / self.steps) ** self.bend

    def measure(self, choice: list[int]) -> float:
        self.timed.append(choice[0])
        return self.fraction(choice)

    def search(self, fraction: float) -> list[int]:
        return search(fraction, self.least, self.choose, self.measure)


@given(st.floats(0.05, 0.5), st.floats(0.4, 2.5), st.floats(0.0, 1.0))
@settings(max_examples=500, deadline=None)
def test_the_time_asked_for_is_met_however_the_times_bend(least, bend, position):
    model = Model(least=least, bend=bend, steps=10**6)
    fraction = least + position * (1 - least)
    assert model.fraction(model.search(fraction)) == pytest.approx(fraction, rel=TOLERANCE)
    assert len(model.timed) <= MAX_TIMED


def test_where_the_table_is_right_one_measurement_is_enough():
    model = Model(least=0.2)
    model.search(0.5)
    assert len(model.timed) == 1


def test_of_few_sizes_the_nearest_is_taken_and_none_is_timed_twice():
    model = Model(least=0.1, steps=4)  # 0.1, 0.325, 0.55, 0.775, 1
    assert model.search(0.6) == [2]
    assert model.search(0.7) == [3]
    first, second = model.timed[: len(set(model.timed))], model.timed[len(set(model.timed)) :]
    assert len(set(first)) == len(first) and len(set(second)) == len(second)


def test_the_whole_time_is_the_whole_model_and_nothing_is_timed():
    model = Model(least=0.3)
    assert model.search(1.0) == [model.steps]
    assert model.timed == []


def test_a_fraction_hardly_below_the_least_is_the_least():
    model = Model(least=0.3)
    assert model.search(0.3 * (1 - TOLERANCE / 2)) == [0]


def test_noise_does_not_keep_it_from_an_end():
    wrong = iter([1.1, 0.9, 1.2, 0.8, 1.05, 0.97, 1.2, 0.9, 1.1])
    model = Model(least=0.2)
    choice = search(0.5, 0.2, model.choose, lambda choice: model.measure(choice) * next(wrong))
    assert len(model.timed) <= MAX_TIMED
    assert model.fraction(choice) == pytest.approx(0.5, rel=0.25)
