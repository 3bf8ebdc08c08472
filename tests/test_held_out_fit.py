"""Least squares with a ridge that other rows choose, and what layers make of it."""

from __future__ import annotations

import pytest
import torch

from stat_prune.model.folded_consumer import InputCorrection
from stat_prune.pipeline.solving_again.held_out_fit import HeldOutFit


def fitted(features, targets, ridges, *, held_out=None, centred=True):
    fit = HeldOutFit(features.shape[1], targets.shape[1], centred=centred)
    fit.update(features, targets, judges=False)
    if held_out is not None:
        fit.update(*held_out, judges=True)
    return fit.best(ridges)


def rows(count, generator):
    return torch.randn(count, 6, generator=generator) + 2


def test_a_linear_map_and_a_shift_are_found():
    generator = torch.Generator().manual_seed(0)
    features, held_out = rows(400, generator), rows(50, generator)
    wanted, offset = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    ridge, change, shift = fitted(
        features,
        features @ wanted + offset,
        [1.0, 1e-6],
        held_out=(held_out, held_out @ wanted + offset),
    )
    assert ridge == 1e-6
    torch.testing.assert_close(change.float(), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shift.float(), offset, rtol=1e-2, atol=1e-2)


def test_noise_is_not_fitted():
    generator = torch.Generator().manual_seed(0)
    features, held_out = rows(8, generator), rows(400, generator)
    noise, other = (torch.randn(count, 6, generator=generator) for count in (8, 400))
    ridge, change, _ = fitted(features, noise, [1e-3, 1e-6], held_out=(held_out, other))
    assert ridge is None
    assert not change.any()


def test_without_rows_held_out_there_is_one_ridge():
    generator = torch.Generator().manual_seed(0)
    features = rows(40, generator)
    ridge, _, shift = fitted(features, features, [0.1], centred=False)
    assert (ridge, shift) == (0.1, None)
    with pytest.raises(ValueError, match="too many values"):
        fitted(features, features, [0.1, 1.0])


@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_makes_of_its_input_what_it_would_of_the_corrected_one(biased):
    generator = torch.Generator().manual_seed(0)
    features = rows(10, generator)
    change = torch.randn(6, 6, generator=generator)
    shift = torch.randn(6, generator=generator) if biased else None
    layer = torch.nn.Linear(6, 4, bias=biased)
    weight, bias = InputCorrection(("layer",), change, shift).applied(layer.weight, layer.bias)
    corrected = features + features @ change + (0 if shift is None else shift)
    torch.testing.assert_close(
        torch.nn.functional.linear(features, weight, bias), layer(corrected), rtol=1e-4, atol=1e-4
    )
