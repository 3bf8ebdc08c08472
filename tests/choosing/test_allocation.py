"""The allocation against exhaustive search."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stat_prune.choosing.budget.allocation import (
    Menu,
    allocate,
    allocate_evenly,
    allocate_same_sizes,
)
from stat_prune.errors import TargetError


def menu(costs: list[float], errors: list[float]) -> Menu:
    return Menu(
        indices=torch.arange(len(costs)),
        costs=torch.tensor(costs, dtype=torch.float64),
        errors=torch.tensor(errors, dtype=torch.float64),
        full_cost=max(costs),
    )


def convex_menu(size: int, scale: float) -> Menu:
    """Unit steps in cost and errors that fall by less and less."""
    return menu(
        [float(k) for k in range(1, size + 1)],
        [scale * (size - k) ** 2 for k in range(1, size + 1)],
    )


def total(menus: list[Menu], choice: list[int]) -> tuple[float, float]:
    cost = sum(float(m.costs[i]) for m, i in zip(menus, choice, strict=True))
    error = sum(float(m.errors[i]) for m, i in zip(menus, choice, strict=True))
    return cost, error


def best_error(menus: list[Menu], budget: float) -> float:
    choices = itertools.product(*(range(len(m.costs)) for m in menus))
    totals = (total(menus, list(choice)) for choice in choices)
    return min(error for cost, error in totals if cost <= budget + 1e-9)


@given(
    st.lists(st.tuples(st.integers(2, 5), st.floats(0.1, 10)), min_size=2, max_size=4),
    st.floats(0.5, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_convex_curves_of_equal_steps_get_the_allocation_of_exhaustive_search(shapes, fraction):
    menus = [convex_menu(size, scale) for size, scale in shapes]
    budget = fraction * sum(m.full_cost for m in menus)
    if budget < len(menus):
        return
    cost, error = total(menus, allocate(menus, fraction))
    assert cost <= budget + 1e-9
    assert error == pytest.approx(best_error(menus, budget), abs=1e-9)


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.0, 5)), min_size=2, max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.3, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_any_curves_stay_within_the_budget_and_within_one_step_of_the_optimum(steps, fraction):
    menus = []
    for block in steps:
        costs = torch.tensor([cost for cost, _ in block], dtype=torch.float64).cumsum(0)
        saved = torch.tensor([error for _, error in block], dtype=torch.float64)
        menus.append(menu(costs.tolist(), (saved.sum() - saved.cumsum(0)).tolist()))
    budget = fraction * sum(m.full_cost for m in menus)
    if budget < sum(float(m.costs[0]) for m in menus):
        return
    cost, error = total(menus, allocate(menus, fraction))
    largest_step = max(float(m.errors[0] - m.errors[-1]) for m in menus)
    assert cost <= budget * (1 + 1e-9)
    assert error <= best_error(menus, budget) + largest_step + 1e-9


def test_what_hulls_leave_over_is_spent_off_the_hull():
    # The hull's only step (cost 9) does not fit; the point above the hull (cost 4) does.
    menus = [menu([1, 5, 10], [10.0, 9.0, 0.0])]
    assert allocate(menus, 0.6) == [1]


def test_the_whole_budget_keeps_everything_even_where_nothing_is_predicted_to_be_saved():
    menus = [menu([1, 2, 3], [0.0, 0.0, 0.0]), menu([1, 2, 3], [5.0, 0.0, 0.0])]
    assert allocate(menus, 1.0) == [2, 2]


def test_a_budget_below_the_least_is_refused_with_the_least():
    with pytest.raises(TargetError, match=r"0\.1 is below .* already cost 0\.25"):
        allocate([menu([1, 4], [1.0, 0.0])], 0.1)


def test_the_even_allocation_keeps_the_same_fraction_of_each_block():
    menus = [convex_menu(10, 1.0), convex_menu(20, 100.0)]
    assert allocate_evenly(menus, 0.5) == [4, 9]


def test_same_sizes_are_the_best_pair_that_fits():
    heads = [menu([2, 4], [3.0, 0.0]), menu([2, 4], [5.0, 0.0])]
    neurons = [menu([1, 2, 3], [4.0, 1.0, 0.0]), menu([1, 2, 3], [4.0, 2.0, 0.0])]
    # Budget 10 of 14: (heads 2, neurons 3) costs 10 with error 8; (4, 1) costs 10 with error 8;
    # (2, 2) errs by 11. With the second layer's neurons worse, all heads are worth more.
    neurons[1] = menu([1, 2, 3], [3.0, 2.0, 0.0])
    kinds = ["heads", "neurons", "heads", "neurons"]
    menus = [heads[0], neurons[0], heads[1], neurons[1]]
    assert allocate_same_sizes(menus, kinds, 10 / 14) == [1, 0, 1, 0]


def test_same_sizes_refuse_layers_that_differ():
    with pytest.raises(TargetError, match="uniform=True"):
        allocate_same_sizes(
            [menu([1, 2], [1, 0]), menu([1, 2, 3], [2, 1, 0])], ["heads", "heads"], 0.9
        )
