"""The bound of `projections.py`, and how `attention_heads.py` counts."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert

import stat_prune
from attention_heads import standings
from projections import projected
from stat_prune.families import find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.projections import projection
from stat_prune.settings.methods import ATTENTION_CRITERIA

IDS = torch.randint(3, 40, (40, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_inputs_are_projected_to_the_rank_of_what_was_kept(kept):
    model = tiny_bert(initializer_range=0.5)
    rows = [{"input_ids": row} for row in IDS]
    result = stat_prune.prune(model, rows, target=stat_prune.MACs(kept), progress=False)
    blocks = find_blocks(model)
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    statistics = statistics_of(model.base_model, blocks, collect_moments(model, blocks, [batch]))

    network = projected(model, statistics, result)

    for block in blocks:
        weight = projection(network.base_model, block.consumer).weight
        channels = len(result.plan[block.name]) * block.unit_size
        assert torch.linalg.matrix_rank(weight, rtol=1e-5) == min(channels, *weight.shape)
    with torch.no_grad():
        dense, found = (one(input_ids=IDS)[0] for one in (model, network))
    assert torch.allclose(found, dense, atol=1e-4) == (kept == 1)


def test_cells_are_counted_by_the_sense_of_their_score():
    methods = [
        "stat",
        "random",
        *ATTENTION_CRITERIA,
        *(f"{c}-corrected" for c in ATTENTION_CRITERIA),
    ]
    # By both scores each method is ahead of those before it, but for random, drawn twice.
    records = [
        {
            "task": "t",
            "method": method,
            "metrics": ["accuracy", "divergence"],
            "scores": {"0.5": 0.0},
            "details": {"0.5": {"accuracy": rank / 100, "divergence": 1 - rank / 100}},
        }
        for rank, method in enumerate(methods)
        for method in ([method] * 2 if method == "random" else [method])
    ]
    table = standings(records)
    assert "| t | accuracy | 4 of 4 | 4 of 4 | 0 of 4 | 0 of 4 |" in table
    assert "| t | divergence | 4 of 4 | 4 of 4 | 0 of 4 | 0 of 4 |" in table
    records[0]["details"]["0.5"] = {"accuracy": 1.0, "divergence": 1.0}
    table = standings(records)
    assert "| t | accuracy | 4 of 4 | 4 of 4 | 4 of 4 | 4 of 4 |" in table
    assert "| t | divergence | 4 of 4 | 4 of 4 | 0 of 4 | 0 of 4 |" in table
