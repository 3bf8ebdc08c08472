from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from stat_prune.attention import HeadStatistics, compare_removed
from stat_prune.errors import DataError


def statistics_of(entropies: list[list[float]]) -> HeadStatistics:
    values = {
        f"layers.{layer}.heads": {"entropy": torch.tensor(row, dtype=torch.float64)}
        for layer, row in enumerate(entropies)
    }
    return HeadStatistics(values, num_sequences=1, num_tokens=1, threshold=0.01)


def test_the_effect_is_cliffs_delta_and_lies_in_its_interval():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(6, 12))
    kept = [sorted(generator.choice(12, size=7, replace=False).tolist()) for _ in range(6)]
    plan = {f"layers.{i}.heads": units for i, units in enumerate(kept)} | {"layers.0.neurons": [0]}

    (found,) = compare_removed(statistics_of(table.tolist()), plan, num_resamples=999)

    mask = np.zeros((6, 12), dtype=bool)
    for layer, units in enumerate(kept):
        mask[layer, units] = True
    removed, stayed = table[~mask], table[mask]
    u = mannwhitneyu(removed, stayed).statistic  # pairs in which the removed one is larger
    assert found.effect == pytest.approx(2 * u / (len(removed) * len(stayed)) - 1)
    assert found.low < found.effect < found.high
    assert (found.num_removed, found.num_kept) == (30, 42)
    assert found.removed == pytest.approx(removed.mean())
    assert found.kept == pytest.approx(stayed.mean())


def test_groups_that_do_not_overlap_have_an_effect_of_one():
    plan = {"layers.0.heads": [0, 1], "layers.1.heads": [1]}
    (found,) = compare_removed(statistics_of([[0.1, 0.2, 0.9], [0.8, 0.3]]), plan, num_resamples=99)
    assert found.effect == found.low == found.high == 1


def test_the_bootstrap_is_repeatable():
    plan = {"layers.0.heads": [0, 1, 4]}
    statistics = statistics_of([[0.1, 0.7, 0.9, 0.4, 0.5, 0.3]])
    first, second = (compare_removed(statistics, plan, num_resamples=99) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"layers.0.heads": [0, 1, 2]}, "0 heads were removed and 3 kept"),
        ({"layers.0.heads": [0]}, "2 heads were removed and 1 kept"),
        ({"layers.1.heads": [0]}, "does not speak of layers.0.heads"),
    ],
)
def test_plans_that_cannot_be_compared_are_refused(plan, message):
    with pytest.raises(DataError, match=message):
        compare_removed(statistics_of([[0.1, 0.2, 0.9]]), plan)
