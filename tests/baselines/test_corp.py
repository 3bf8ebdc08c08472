"""CORP's choice and compensation against plain computations on what the dense model computes."""

from __future__ import annotations

import pytest
import torch
from encoders import budget_for, build, inputs_of, ready, rows
from tiny_models import tiny_llama

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.baselines import corp
from stat_prune.errors import TargetError


def prune(model, target, **settings):
    return stat_prune.prune(
        model, rows(), target=target, method="corp", batch_size=16, progress=False, **settings
    )


def shrinkage(covariance: torch.Tensor, count: int) -> float:
    """Chen et al. 2010, equation 23; scikit-learn leaves out its terms in 2 / p."""
    size, values = len(covariance), torch.linalg.eigvalsh(covariance)
    squares, square = float(values.square().sum()), float(values.sum()) ** 2
    above = (1 - 2 / size) * squares + square
    return min(above / ((count + 1 - 2 / size) * (squares - square / size)), 1.0)


def test_channels_of_energy_and_activity_stay_and_foretell_the_others():
    model = build()
    with ready(model) as run:
        plans = corp.plan(run, budget_for(run, MACs(0.5)))
        names = ("input_ids", "attention_mask")
        batches = [{name: batch[name] for name in names} for batch in run.calibration.batches]
    for one in plans:
        folded = one.folded
        block, units = folded.block, folded.units
        seen = inputs_of(model, block, batches)
        weight = model.base_model.get_submodule(block.consumer).weight.detach().double()
        each = seen
        if block.kind == "heads":
            each = seen.square().unflatten(1, (block.num_units, -1)).sum(2)
        least = 0.01 * each.square().mean().sqrt()
        scores = each.square().mean(0) * (each.abs() > least).double().mean(0)
        assert units.tolist() == scores.topk(len(units)).indices.sort().values.tolist()
        kept = block.channels(units)
        gone = torch.tensor([at for at in range(seen.shape[1]) if at not in kept.tolist()])
        if block.kind == "heads":
            assert folded.bias is None
            assert torch.equal(folded.weight, weight[:, kept])
            continue
        centred = seen - seen.mean(0)
        covariance = centred[:, kept].T @ centred[:, kept] / len(seen)
        ridge = max(shrinkage(covariance, len(seen)) * float(covariance.trace()) / len(kept), 1e-3)
        root = (len(seen) * ridge) ** 0.5 * torch.eye(len(kept)).double()
        foretold = torch.linalg.lstsq(
            torch.cat([centred[:, kept], root]),
            torch.cat([centred[:, gone], root.new_zeros(len(kept), len(gone))]),
        ).solution
        read = centred[:, kept] @ foretold + seen[:, gone].mean(0)
        expected = seen[:, kept] @ weight[:, kept].T + read @ weight[:, gone].T
        made = seen[:, kept] @ folded.weight.T + folded.bias
        torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-8)
        dense = seen @ weight.T
        error = float((made - dense).norm() / dense.norm())
        assert folded.output_error == pytest.approx(error, rel=1e-6)
        lost = float((read - seen[:, gone]).norm() / seen.norm())
        assert one.activation_error == pytest.approx(lost, rel=1e-6)


@pytest.mark.parametrize("target", [MACs(0.6), MACs(0.3), Parameters(0.5)])
def test_every_block_keeps_the_same_fraction(target):
    report = prune(build(), target).report
    assert {row.kept for row in report.blocks if row.kind == "heads"} == {
        max(round(4 * target.fraction), 1)
    }
    neurons = [row.kept for row in report.blocks if row.kind == "neurons"]
    assert max(neurons) - min(neurons) <= 1


def test_a_model_without_biases_is_given_them_within_its_budget(tmp_path):
    model = tiny_llama()
    ids = torch.randint(3, 40, (24, 9), generator=torch.Generator().manual_seed(0))
    dense = model.state_dict()
    result = stat_prune.prune(
        model,
        [{"input_ids": row} for row in ids],
        target=Parameters(0.6),
        method="corp",
        progress=False,
        output_dir=tmp_path / "out",
    )
    report = result.report
    assert report.after.block_parameters <= 0.6 * report.before.block_parameters
    assert any(name.endswith("down_proj.bias") for name in result.model.state_dict())
    assert not any(name.endswith("down_proj.bias") for name in dense)
    with torch.no_grad():
        again = stat_prune.load(tmp_path / "out")(ids[:2]).logits
        assert torch.equal(again, result.model(ids[:2]).logits)


@pytest.mark.parametrize("target", [Tolerance(0.1), MACs({"heads": 0.5})])
def test_targets_that_it_has_not_are_refused(target):
    with pytest.raises(TargetError, match="method='corp' takes one fraction"):
        prune(build(), target)
