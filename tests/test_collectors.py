"""What goes wrong while activations are collected is reported as what it is."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert

from stat_prune.errors import NonFiniteActivationsError
from stat_prune.families import find_blocks
from stat_prune.linalg import Moments
from stat_prune.measuring.collectors import MomentsCollector, collect_moments

BATCH = {"input_ids": torch.randint(3, 40, (4, 9), generator=torch.Generator().manual_seed(3))}


def test_activations_whose_squares_overflow_name_the_block_though_they_are_finite():
    model = tiny_bert()
    model.encoder.layer[1].intermediate.dense.weight.data.mul_(1e25)
    with pytest.raises(
        NonFiniteActivationsError, match=r"encoder\.layer\.1\.neurons: .*batch 0.*overflow.*float32"
    ):
        collect_moments(model, find_blocks(model), [BATCH], precision="float32")


def test_another_error_of_the_statistics_is_not_taken_for_activations_that_are_not_finite():
    model = tiny_bert()
    blocks = find_blocks(model)
    collector = MomentsCollector(model, blocks, device=torch.device("cpu"))
    collector.moments[blocks[0].name] = Moments(7)
    with pytest.raises(ValueError, match="must have 7 columns") as caught, collector:
        collector.expect(BATCH)
        model(**BATCH)
    assert not isinstance(caught.value, NonFiniteActivationsError)
