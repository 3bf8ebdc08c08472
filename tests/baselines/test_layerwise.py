"""Layer by layer gives what the whole model gives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from encoders import CONFIGS, build, logits, ready
from torch import nn

from stat_prune.baselines.layer_inputs import (
    LayerwiseModel,
    dense_sums,
    mask_block,
    reconstruction_moments,
)
from stat_prune.data.batching import token_mask
from stat_prune.families import transformer_layers


@pytest.fixture(params=CONFIGS)
def model(request):
    return build(request.param)


@torch.no_grad()
def test_every_layer_can_be_started_from(model):
    attributes = {name: vars(module).keys() for name, module in model.named_modules()}
    with ready(model) as run:
        expected = logits(model, run)
        stepping = LayerwiseModel(model, run.calibration.batches)
        for _ in transformer_layers(model):
            found = [stepping.finish(i).logits for i in range(len(run.calibration.batches))]
            assert torch.equal(torch.cat(found), expected)
            stepping.advance()
    assert {name: vars(module).keys() for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_sums_are_what_the_normalisation_reads(model):
    read: dict[str, list[torch.Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _module, args, name=name: read.setdefault(name, []).append(args[0])
        )
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.LayerNorm) and "embeddings" not in name
    ]
    with ready(model) as run:
        logits(model, run)
        for handle in handles:
            handle.remove()
        dense = LayerwiseModel(model, run.calibration.batches)
        sums = {}
        for layer in range(len(transformer_layers(model))):
            sums |= dense_sums(dense, [block for block in run.blocks if block.layer == layer])
        assert dense.layer == layer + 1
    # Norms and blocks both come sublayer by sublayer.
    for block, name in zip(run.blocks, read, strict=True):
        for actual, expected in zip(sums[block.name], read[name], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_moments_are_of_the_kept_channels_and_of_what_they_should_add(model):
    with ready(model) as run:
        dense, pruned = (
            LayerwiseModel(one, run.calibration.batches) for one in (model, copy.deepcopy(model))
        )
        heads, neurons = run.blocks[:2]
        units = torch.tensor([0, 2])
        channels = heads.channels(units)
        mask_block(
            pruned.model, heads, units,
            model.base_model.get_submodule(heads.consumer).weight[:, channels].double(),
        )  # fmt: skip
        sums = dense_sums(dense, [heads, neurons])
        kept = torch.arange(3, 20)
        moments = reconstruction_moments(pruned, neurons, sums[neurons.name], kept)
        # The same from the pruned model's whole forward.
        features, targets = [], []
        producer = pruned.model.base_model.get_submodule(neurons.producers[0].path)
        consumer = pruned.model.base_model.get_submodule(neurons.consumer)
        entered, read = [], []
        producer.register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
        consumer.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
        logits(pruned.model, run)
        for index, batch in enumerate(run.calibration.batches):
            mask = token_mask(batch)
            features.append(read[index][mask][:, kept])
            added = sums[neurons.name][index] - entered[index] - consumer.bias
            targets.append(added[mask])
    x, y = (torch.cat(part).double().numpy() for part in (features, targets))
    gram, cross, energies = moments.normal_equations()
    np.testing.assert_allclose(gram, x.T @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(cross, x.T @ y, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(energies, (y**2).sum(0), rtol=1e-4)
