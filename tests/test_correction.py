"""The folded consumer against dense least squares on the activations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import head_block, neuron_block, random_statistics

from stat_prune.choosing.correction import activation_error, fold


@pytest.mark.parametrize("bias", [False, True])
def test_the_folded_weight_is_the_dense_least_squares_solution(bias):
    statistics, activations, consumer = random_statistics(neuron_block(10, 4, bias=bias), bias=bias)
    units = torch.tensor([0, 2, 3, 7, 8])
    folded = fold(statistics, units)
    kept = activations[:, units].numpy()
    if bias:
        kept = np.hstack([kept, np.ones((len(kept), 1))])
    output = activations.numpy() @ consumer.weight.detach().numpy().T
    solution, *_ = np.linalg.lstsq(kept, output, rcond=None)
    np.testing.assert_allclose(folded.weight.numpy(), solution[:5].T, rtol=1e-7, atol=1e-9)
    if bias:
        np.testing.assert_allclose(folded.bias.numpy(), solution[5], rtol=1e-7, atol=1e-8)
    left = np.linalg.norm(output - kept @ solution) / np.linalg.norm(output)
    assert folded.output_error == pytest.approx(left, rel=1e-6)


def test_plain_removal_reports_the_error_of_plain_removal():
    statistics, activations, consumer = random_statistics(neuron_block(10, 4, bias=True), bias=True)
    units = torch.tensor([1, 4, 5])
    folded = fold(statistics, units, corrected=False)
    assert folded.bias is None
    torch.testing.assert_close(folded.weight, consumer.weight.detach()[:, units])
    removed = activations.clone()
    removed[:, units] = 0
    lost = (removed @ consumer.weight.detach().T).norm()
    dense = (activations @ consumer.weight.detach().T).norm()
    assert folded.output_error == pytest.approx(float(lost / dense), rel=1e-9)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
def test_an_expendable_gram_matrix_and_a_weight_in_half_precision_give_the_same_bits(
    bias, corrected
):
    statistics, *_ = random_statistics(neuron_block(700, 4, bias=bias), tokens=900, bias=bias)
    half = statistics.weight.bfloat16()
    units = torch.arange(0, 700, 2)
    options = {"corrected": corrected, "output_error": 0.1}
    known = fold(replace(statistics, weight=half.double()), units, **options)
    gram = statistics.gram.clone()
    expendable = replace(statistics, weight=half, gram=gram, expendable=True)
    folded = fold(expendable, units, **options)
    assert torch.equal(folded.weight, known.weight)
    assert (folded.bias is None) == (known.bias is None)
    if known.bias is not None:
        assert torch.equal(folded.bias, known.bias)
    # The system was solved in its memory; nothing is solved without a correction.
    assert torch.equal(gram, statistics.gram) != corrected


def test_keeping_everything_changes_nothing():
    statistics, _, consumer = random_statistics(head_block(4, 4, 2, 5))
    folded = fold(statistics, torch.arange(4))
    assert torch.equal(folded.weight, consumer.weight.detach())
    assert folded.bias is None and folded.output_error == 0


def test_scattering_puts_heads_back_in_their_places():
    statistics, activations, _ = random_statistics(head_block(4, 4, 2, 5))
    folded = fold(statistics, torch.tensor([1, 3]))
    scattered = folded.scattered_weight()
    channels = torch.tensor([2, 3, 6, 7])
    torch.testing.assert_close(
        activations @ scattered.T, activations[:, channels] @ folded.weight.T
    )


def test_the_activation_error_is_that_of_the_centred_residual():
    statistics, activations, _ = random_statistics(neuron_block(9, 4, bias=True), bias=True)
    units = torch.tensor([0, 5, 6])
    kept = np.hstack([activations[:, units].numpy(), np.ones((len(activations), 1))])
    a = activations.numpy()
    residual = a - kept @ np.linalg.lstsq(kept, a, rcond=None)[0]
    expected = np.linalg.norm(residual) / np.linalg.norm(a)
    assert activation_error(statistics, units) == pytest.approx(expected, rel=1e-6)
