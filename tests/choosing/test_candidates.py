"""Predicted errors against what dense least squares leaves on the activations themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from toys import head_block, neuron_block, random_statistics

from stat_prune.choosing.correction import fold
from stat_prune.choosing.criteria import CRITERIA, candidates_for
from stat_prune.settings.methods import CriterionName


def candidates_of(statistics, criterion: str, *, corrected: bool = True, remove: bool = False):
    return candidates_for(
        statistics,
        CRITERIA[criterion],
        corrected=corrected,
        generator=torch.Generator().manual_seed(0),
        remove=remove,
    )


def dense_errors(activations, weight, channels, *, bias: bool):
    """Relative squared errors after numpy's least squares on the raw activations."""
    a, w = activations.numpy(), weight.detach().numpy()
    kept = a[:, channels.numpy()]
    if bias:
        kept = np.hstack([kept, np.ones((len(a), 1))])
    residual = a - kept @ np.linalg.lstsq(kept, a, rcond=None)[0]
    return (
        np.linalg.norm(residual @ w.T) ** 2 / np.linalg.norm(a @ w.T) ** 2,
        np.linalg.norm(residual) ** 2 / np.linalg.norm(a) ** 2,
    )


@pytest.mark.parametrize(
    ("block", "corrected", "destroyed"),
    [
        (neuron_block(60, 5, bias=False), True, True),
        (neuron_block(60, 5, bias=False), False, False),
        (head_block(8, 4, 3, 5), True, False),
    ],
    ids=["neurons", "without correction", "heads"],
)
def test_an_expendable_gram_matrix_gives_the_same_candidates(block, corrected, destroyed):
    statistics, *_ = random_statistics(block)
    known = candidates_of(statistics, "interpolative", corrected=corrected)
    gram = statistics.gram.clone()
    expendable = replace(statistics, gram=gram, expendable=True)
    found = candidates_of(expendable, "interpolative", corrected=corrected)
    assert found.prefixes == known.prefixes
    assert all(torch.equal(a, b) for a, b in zip(found.orders, known.orders, strict=True))
    assert torch.equal(found.output_errors, known.output_errors)
    assert torch.equal(found.activation_errors, known.activation_errors)
    assert torch.equal(gram, statistics.gram) != destroyed


def test_every_criterion_that_a_method_may_name_has_a_function():
    assert CRITERIA.keys() == set(get_args(CriterionName))


@pytest.mark.parametrize("criterion", ["interpolative", "obs", "magnitude", "wanda-sp", "random"])
@pytest.mark.parametrize("bias", [False, True])
def test_errors_of_every_number_of_neurons_are_those_of_dense_least_squares(criterion, bias):
    statistics, activations, consumer = random_statistics(neuron_block(12, 5, bias=bias), bias=bias)
    candidates = candidates_of(statistics, criterion)
    assert candidates.num_units.tolist() == list(range(1, 13))
    for index in range(12):
        channels = statistics.block.channels(candidates.units(index))
        output, activation = dense_errors(activations, consumer.weight, channels, bias=bias)
        assert float(candidates.output_errors[index]) == pytest.approx(output, rel=1e-5, abs=1e-11)
        assert float(candidates.activation_errors[index]) == pytest.approx(
            activation, rel=1e-5, abs=1e-11
        )


@pytest.mark.parametrize("criterion", ["interpolative", "obs", "magnitude", "wanda-sp", "random"])
def test_shared_keys_offer_every_number_of_groups_and_of_heads_a_group(criterion):
    statistics, activations, consumer = random_statistics(head_block(6, 2, 3, 5))
    candidates = candidates_of(statistics, criterion)
    sizes = list(zip(candidates.num_units.tolist(), candidates.num_groups.tolist(), strict=True))
    assert sorted(sizes) == [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (6, 2)]
    for index, (num_units, num_groups) in enumerate(sizes):
        units = candidates.units(index)
        heads_in_groups = torch.bincount(units // 3, minlength=2)
        assert sorted(set(heads_in_groups.tolist()) - {0}) == [num_units // num_groups]
        output, _ = dense_errors(
            activations, consumer.weight, statistics.block.channels(units), bias=False
        )
        assert float(candidates.output_errors[index]) == pytest.approx(output, rel=1e-4, abs=1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_no_unit_at_all_is_a_size_where_asked_for_and_loses_what_varies(bias):
    for block in (neuron_block(12, 5, bias=bias), head_block(6, 2, 3, 5), head_block(4, 4, 3, 5)):
        block = replace(block, consumer_bias=bias)
        statistics, activations, consumer = random_statistics(block, bias=bias)
        without, candidates = (
            candidates_of(statistics, "interpolative", remove=remove) for remove in (False, True)
        )
        none = torch.empty(0, dtype=torch.int64)
        output, activation = dense_errors(activations, consumer.weight, none, bias=bias)
        assert candidates.units(0).tolist() == []
        assert int(candidates.num_groups[0]) == 0
        assert float(candidates.output_errors[0]) == pytest.approx(output, rel=1e-6)
        assert float(candidates.activation_errors[0]) == pytest.approx(activation, rel=1e-6)
        assert list(candidates.prefixes[1:]) == list(without.prefixes)
        folded = fold(statistics, candidates.units(0))
        assert folded.weight.shape == (5, 0)
        assert folded.output_error == pytest.approx(output**0.5, rel=1e-6)
        if bias:
            mean = (activations @ consumer.weight.T).mean(0)
            torch.testing.assert_close(folded.bias, mean)
        fixed = replace(statistics, block=replace(block, removable=False))
        prefixes = candidates_of(fixed, "interpolative", remove=True).prefixes
        assert list(prefixes) == list(without.prefixes)


def test_errors_without_correction_are_those_of_plain_removal():
    statistics, activations, consumer = random_statistics(
        neuron_block(8, 5, bias=True), bias=True, absorb_mean=False
    )
    candidates = candidates_of(statistics, "magnitude", corrected=False)
    output = activations @ consumer.weight.detach().T
    for index in range(8):
        removed = activations.clone()
        removed[:, candidates.units(index)] = 0
        lost = (removed @ consumer.weight.detach().T).norm() ** 2 / output.norm() ** 2
        assert float(candidates.output_errors[index]) == pytest.approx(float(lost), abs=1e-10)


def test_pivots_are_those_of_lapack_on_columns_scaled_by_the_consumer():
    from scipy.linalg import qr

    statistics, activations, consumer = random_statistics(neuron_block(12, 5, bias=False))
    scaled = activations.numpy() * np.linalg.norm(consumer.weight.detach().numpy(), axis=0)
    pivots = qr(scaled, mode="r", pivoting=True)[1]
    candidates = candidates_of(statistics, "interpolative")
    assert candidates.orders[0].tolist() == pivots.tolist()


def test_magnitude_keeps_the_columns_of_largest_norm():
    statistics, _, consumer = random_statistics(neuron_block(8, 5, bias=False))
    kept = candidates_of(statistics, "magnitude").units(2)
    norms = consumer.weight.detach().norm(dim=0)
    assert set(kept.tolist()) == set(norms.topk(3).indices.tolist())


@pytest.mark.parametrize("absorb_mean", [False, True])
def test_wanda_sums_weights_times_activation_norms_over_each_head(absorb_mean):
    block = replace(head_block(5, 5, 3, 7), consumer_bias=True)
    statistics, activations, consumer = random_statistics(block, bias=True, absorb_mean=absorb_mean)
    assert (statistics.mean is not None) == absorb_mean
    score = consumer.weight.detach().abs() * activations.square().sum(0).sqrt()
    expected = score.sum(0).reshape(5, 3).sum(1).argsort(descending=True)
    assert candidates_of(statistics, "wanda-sp").orders[0].tolist() == expected.tolist()


@pytest.mark.parametrize(("units", "unit_size"), [(9, 1), (5, 3)])
def test_obs_removes_the_unit_whose_loss_dense_least_squares_raises_least(units, unit_size):
    statistics, activations, consumer = random_statistics(head_block(units, units, unit_size, 7))
    order = candidates_of(statistics, "obs").orders[0].tolist()

    def loss(kept: list[int]) -> float:
        channels = statistics.block.channels(torch.tensor(kept, dtype=torch.int64))
        return dense_errors(activations, consumer.weight, channels, bias=False)[0]

    for length in range(2, units + 1):
        kept = order[:length]
        losses = {unit: loss([other for other in kept if other != unit]) for unit in kept}
        assert kept[-1] == min(losses, key=lambda unit: losses[unit])


def test_random_follows_its_generator():
    statistics, _, _ = random_statistics(neuron_block(64, 5, bias=False))
    first, second = (candidates_of(statistics, "random").orders[0] for _ in range(2))
    other = candidates_for(
        statistics,
        CRITERIA["random"],
        corrected=True,
        generator=torch.Generator().manual_seed(1),
    ).orders[0]
    assert first.tolist() == second.tolist() != other.tolist()


def test_the_best_of_the_units_that_are_needed_stays_with_the_last():
    statistics, *_ = random_statistics(head_block(6, 6, 3, 5))
    free = candidates_of(statistics, "interpolative")
    *_, second_last, last = free.orders[0].tolist()
    bound = candidates_for(
        replace(statistics, gram=statistics.gram.clone(), expendable=True),
        CRITERIA["interpolative"],
        corrected=True,
        generator=torch.Generator().manual_seed(0),
        needed=[last, second_last],
    )
    assert bound.orders[0].tolist() == [second_last, *free.orders[0].tolist()[:-2], last]
    # Each size is priced as what it is.
    for index in range(len(bound.prefixes)):
        expected = fold(statistics, bound.units(index)).output_error ** 2
        assert float(bound.output_errors[index]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
