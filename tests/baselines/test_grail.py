"""GRAIL's choice and compensation against plain computations in the model as pruned so far."""

from __future__ import annotations

import copy

import pytest
import torch
from encoders import budget_for, build, inputs_of, ready, rows
from toys import head_block, neuron_block
from transformers import AlbertConfig, AlbertModel, BartConfig, BartModel

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.baselines import grail
from stat_prune.baselines.grail import RIDGE
from stat_prune.baselines.ranking import even_counts
from stat_prune.errors import ModelError, TargetError
from stat_prune.model.blocks import Block
from stat_prune.surgery.cut import apply


def prune(model, target, **settings):
    return stat_prune.prune(
        model, rows(), target=target, method="grail", batch_size=16, progress=False, **settings
    )


def test_every_layer_is_compensated_for_what_it_reads_once_those_before_it_are_pruned():
    model = build()
    with ready(model) as run:
        plans = grail.plan(run, budget_for(run, MACs(0.5)))
        names = ("input_ids", "attention_mask")
        batches = [{name: batch[name] for name in names} for batch in run.calibration.batches]
    so_far = copy.deepcopy(model)
    for layer in range(3):
        members = [one.folded for one in plans if one.folded.block.layer == layer]
        assert len(members) == 2
        for folded in members:
            block, units = folded.block, folded.units
            seen = inputs_of(so_far, block, batches)
            weight = model.base_model.get_submodule(block.consumer).weight.detach().double()
            scores = (weight.abs().sum(0) * seen.norm(dim=0)).reshape(block.num_units, -1).sum(1)
            assert units.tolist() == scores.topk(len(units)).indices.sort().values.tolist()
            kept = seen[:, block.channels(units)]
            ridge = (RIDGE * kept.square().sum(0).mean()).sqrt()
            system = torch.cat([kept, ridge * torch.eye(kept.shape[1]).double()])
            wanted = torch.cat([seen @ weight.T, weight.new_zeros(kept.shape[1], len(weight))])
            expected = torch.linalg.lstsq(system, wanted).solution.T
            torch.testing.assert_close(folded.weight, expected, rtol=1e-4, atol=1e-5)
        apply(so_far, members)


@pytest.mark.parametrize("target", [MACs(0.6), MACs(0.3), Parameters(0.5)])
def test_every_block_keeps_the_same_fraction(target):
    report = prune(build(), target).report
    heads = [row.kept for row in report.blocks if row.kind == "heads"]
    assert set(heads) == {max(round(4 * target.fraction), 1)}
    neurons = [row.kept for row in report.blocks if row.kind == "neurons"]
    assert max(neurons) - min(neurons) <= 1


def test_what_is_ignored_stays_and_the_others_pay_for_it():
    report = prune(build(), MACs(0.8), ignore=[0]).report
    assert {row.layer for row in report.blocks if row.kept < row.total} == {1, 2}
    kept = report.after.block_macs / report.before.block_macs
    assert 0.77 < kept <= 0.8


def test_heads_that_leave_nothing_for_neurons_are_refused():
    blocks = [head_block(4, 4, 3, 7), neuron_block(2, 5, bias=False)]
    with pytest.raises(TargetError, match="keeps the same fraction of all heads.*Ask for more"):
        even_counts(blocks, [], Block.parameters, 0.25, "grail")


@pytest.mark.parametrize("target", [Tolerance(0.1), MACs({"heads": 0.5})])
def test_targets_that_it_has_not_are_refused(target):
    with pytest.raises(TargetError, match="method='grail' takes one fraction"):
        prune(build(), target)


def test_other_layouts_than_one_stack_of_layers_are_refused():
    sizes = {"vocab_size": 64, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    layers = {"encoder_layers": 2, "decoder_layers": 2}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    bart = BartModel(BartConfig(**sizes, **layers, **heads))
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "embedding_size": 8}
    albert = AlbertModel(AlbertConfig(**sizes, num_hidden_layers=2, num_attention_heads=4))
    for model in (bart, albert):
        with pytest.raises(ModelError, match="method='grail' goes from layer to layer"):
            prune(model, MACs(0.5))
