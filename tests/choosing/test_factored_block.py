"""Candidates folded from one factor make what each correction makes when it is solved alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import head_block, neuron_block, random_statistics

from stat_prune.choosing.correction import fold
from stat_prune.choosing.criteria import CRITERIA, Ranking, candidates_for
from stat_prune.choosing.factored_block import FactoredBlock
from stat_prune.measuring.statistics import BlockStatistics


def both(statistics, criterion="interpolative", *, remove=False):
    candidates = candidates_for(
        statistics,
        CRITERIA[criterion],
        corrected=True,
        generator=torch.Generator().manual_seed(0),
        remove=remove,
    )
    return candidates, FactoredBlock(statistics, candidates)


def with_gram(statistics: BlockStatistics, gram) -> BlockStatistics:
    energy = float(((statistics.weight @ gram) * statistics.weight).sum())
    return replace(
        statistics, gram=gram, activation_energy=float(gram.trace()), output_energy=energy
    )


def output_change(statistics, one, other) -> float:
    """Norm of the difference of two consumers' outputs, relative to the dense output."""
    change = one.scattered_weight().double() - other.scattered_weight()
    return (
        float(((change @ statistics.gram) * change).sum().clamp_min(0)) / statistics.output_energy
    ) ** 0.5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("criterion", ["interpolative", "magnitude", "random"])
@pytest.mark.parametrize("block", [neuron_block, head_block], ids=["neurons", "heads"])
def test_each_size_is_folded_as_it_is_alone(block, criterion, bias):
    shape = block(60, 5, bias=bias) if block is neuron_block else head_block(12, 12, 4, 5)
    shape = replace(shape, consumer_bias=bias)
    statistics, *_ = random_statistics(shape, tokens=400, bias=bias)
    candidates, factored = both(statistics, criterion, remove=True)
    for index in range(len(candidates.prefixes) - 1):
        found = factored.fold(index)
        known = fold(statistics, candidates.units(index))
        assert found is not None and torch.equal(found.units, known.units)
        assert found.output_error == pytest.approx(known.output_error, rel=1e-4)
        torch.testing.assert_close(found.weight.double(), known.weight, rtol=1e-4, atol=1e-4)
        assert (found.bias is None) == (known.bias is None) == (not bias)
        if bias:
            torch.testing.assert_close(found.bias, known.bias, rtol=1e-3, atol=1e-3)
    # Nothing leaves the largest.
    assert factored.fold(len(candidates.prefixes) - 1) is None


@pytest.mark.parametrize("criterion", ["interpolative", "random"])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_rounding_is_told_from_the_error_of_a_size(criterion, decay, spread):
    """Channels that nearly depend on others, or are 1e10 times as large."""
    generator = torch.Generator().manual_seed(0)
    statistics, *_ = random_statistics(neuron_block(80, 6, bias=False))
    rows = torch.randn(300, 80, dtype=torch.float64, generator=generator)
    directions = torch.linalg.qr(
        torch.randn(80, 80, dtype=torch.float64, generator=generator)
    ).Q * torch.logspace(0, -decay * 40, 80, dtype=torch.float64)
    rows = (rows @ directions.T) * torch.logspace(0, spread, 80, dtype=torch.float64)
    statistics = with_gram(statistics, rows.T @ rows)
    candidates, factored = both(statistics, criterion)
    folded = 0
    for index in range(len(candidates.prefixes) - 1):
        found = factored.fold(index)
        if found is None:
            continue
        folded += 1
        change = output_change(statistics, found, fold(statistics, candidates.units(index)))
        error = float(candidates.output_errors[index].clamp_min(0)) ** 0.5
        assert change <= 3 * max(1e-2 * error, 1e-5)
    assert folded > 20


@pytest.mark.parametrize(("apart", "much"), [(0.1, False), (1e-5, True)])
def test_differences_of_channels_that_are_nearly_equal_are_left_to_float64(apart, much):
    """What is kept is a and a + apart b; the consumer reads b, which their difference tells."""
    statistics, *_ = random_statistics(neuron_block(3, 2, bias=False))
    a, b = torch.linalg.qr(torch.randn(50, 2, dtype=torch.float64)).Q.T
    rows = torch.stack([a, a + apart * b, b], dim=1)
    weight = statistics.weight.new_tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    statistics = with_gram(replace(statistics, weight=weight), rows.T @ rows)
    order = Ranking(torch.arange(3))
    candidates = candidates_for(
        statistics, lambda *_: order, corrected=True, generator=torch.Generator()
    )
    assert (FactoredBlock(statistics, candidates).fold(1) is None) == much
