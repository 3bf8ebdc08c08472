"""KCM: how neurons are ranked, that heads all stay, and what the scaling is for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from encoders import CONFIGS, budget_for, build, logits, ready, rows
from sklearn.metrics.pairwise import rbf_kernel

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.baselines import kcm
from stat_prune.data.batching import token_mask
from stat_prune.errors import TargetError
from stat_prune.surgery.cut import apply


def coefficients(points: np.ndarray) -> np.ndarray:
    """The coefficients of R2, one by one."""
    kernel, count = rbf_kernel(points, gamma=1.0), len(points)
    found = np.full((count, count), 1 / count)
    while True:
        updated = np.empty_like(found)
        for i in range(count):
            for j in range(count):
                represented = sum(kernel[i, k] * found[k, j] for k in range(count))
                updated[i, j] = found[i, j] * math.sqrt(kernel[i, j] / represented)
        if abs(updated.sum() - found.sum()) / found.sum() < 0.01:
            return updated
        found = updated


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_representative_scores_are_the_diagonal_of_the_coefficients(spread):
    generator = torch.Generator().manual_seed(2)
    weight = spread * torch.randn(6, 20, generator=generator, dtype=torch.float64)
    expected = np.diag(coefficients(weight.T.numpy()))
    np.testing.assert_allclose(kcm.representative_scores(weight), expected, rtol=1e-10)


def test_points_that_represent_each_other_score_less_than_one_that_stands_alone():
    generator = torch.Generator().manual_seed(2)
    weight = 0.05 * torch.randn(4, 12, generator=generator, dtype=torch.float64)
    weight[:, 3] += 2
    scores = kcm.representative_scores(weight)
    others = torch.arange(12) != 3
    assert float(scores[3]) > 2 * float(scores[others].max())


def test_points_too_far_apart_for_the_kernel_are_told_apart_by_nothing():
    weight = 1e3 * torch.eye(5, 9, dtype=torch.float64) + 1e3 * torch.arange(9.0)
    scores = kcm.representative_scores(weight)
    torch.testing.assert_close(scores, scores[:1].expand_as(scores))
    assert 0.9 < float(scores[0]) <= 1


def combined(points: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """R2 from 0 to 1 times D2 of mean 0 and deviation 1."""
    representative = np.diag(coefficients(points))
    spread = representative.max() - representative.min()
    standardised = (norms - norms.mean()) / norms.std(ddof=1)
    return (representative - representative.min()) / spread * standardised


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_one_threshold_over_all_layers_on_the_product_of_both_rankings(family):
    model = build(family)
    target = MACs(0.8, seq_length=20)
    with ready(model, ignore=["heads"]) as run:
        plans = kcm.plan_untuned(run, budget_for(run, target))
        scores, kept = [], []
        for plan in plans:
            consumer = model.base_model.get_submodule(plan.folded.block.consumer)
            read: list[torch.Tensor] = []
            handle = consumer.register_forward_pre_hook(
                lambda _m, args, read=read: read.append(*args)
            )
            logits(model, run)
            handle.remove()
            batches = zip(read, run.calibration.batches, strict=True)
            tokens = torch.cat([a[token_mask(batch)] for a, batch in batches]).double().numpy()
            norms = np.linalg.norm(tokens, axis=0)
            points = consumer.weight.T.double().numpy()
            scores.append(combined(points, norms))
            kept.append(np.isin(np.arange(len(norms)), plan.folded.units))
            assert torch.equal(plan.folded.weight, consumer.weight[:, plan.folded.units].double())
    sizes = [int(one.sum()) for one in kept]
    assert len(set(sizes)) > 1
    assert all(1 < size < len(one) for size, one in zip(sizes, kept, strict=True))
    lowest = min(one[stays].min() for one, stays in zip(scores, kept, strict=True))
    highest = max(one[~stays].max() for one, stays in zip(scores, kept, strict=True))
    assert lowest >= highest


@pytest.mark.parametrize("method", ["kcm", "kcm-untuned"])
@pytest.mark.parametrize("target", [MACs(0.8, seq_length=20), Parameters(0.7)], ids=str)
def test_neurons_bear_the_whole_budget_and_nearly_use_it_up(method, target):
    report = stat_prune.prune(build(), rows(), target=target, method=method, progress=False).report
    measure = "block_macs" if isinstance(target, MACs) else "block_parameters"
    before, after = getattr(report.before, measure), getattr(report.after, measure)
    assert 0.98 * target.fraction * before < after <= target.fraction * before * (1 + 1e-9)
    assert all(row.kept == row.total for row in report.blocks if row.kind == "heads")
    assert any(row.kept < row.total for row in report.blocks if row.kind == "neurons")


def test_a_budget_that_heads_alone_exceed_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(kcm, "plan", None)  # not even reached
    with pytest.raises(TargetError, match=r"below the least .* method='kcm' leaves all heads"):
        stat_prune.prune_family(
            build(), rows(), targets=[MACs(0.9), MACs(0.3)], method="kcm", progress=False
        )


def test_scaling_brings_the_predictions_closer_to_the_dense_ones():
    model = build(num_labels=3)
    distances = []
    with ready(model, ignore=["heads"]) as run:
        dense = logits(model, run)
        for planner in (kcm.plan_untuned, kcm.plan):
            pruned = copy.deepcopy(model)
            apply(pruned, [plan.folded for plan in planner(run, budget_for(run, MACs(0.8)))])
            distances.append(float((logits(pruned, run) - dense).norm() / dense.norm()))
    assert 0 < distances[1] < 0.9 * distances[0]
