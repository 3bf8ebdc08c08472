"""A probe measures what cutting the block would do to the output."""

from __future__ import annotations

import copy

import pytest
import torch
from families import Family

from stat_prune.choosing.correction import fold
from stat_prune.data.calibration import build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.families import find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import probe
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.running import model_inputs
from stat_prune.surgery.cut import apply


@torch.no_grad()
def test_a_probe_is_the_distance_of_the_model_with_that_block_cut(
    family: Family, texts, word_tokenizer
):
    model = family.build(family.classifier)
    blocks = [block for block in find_blocks(model) if not block.fixed]
    batches = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=80, complete=Completion(model)
    ).batches
    moments = collect_moments(model, blocks, batches)
    probes = [
        fold(one, torch.arange(one.block.num_units // 2))
        for one in statistics_of(model.base_model, blocks, moments)
    ]
    (batch,) = batches
    inputs = model_inputs(model, batch, torch.device("cpu"))
    dense = model(**inputs)
    for folded, measured in zip(probes, probe(model, probes, batches), strict=True):
        cut = copy.deepcopy(model)
        # Experts of one set are probed together.
        apply(cut, [one for one in probes if one.block.set_name == folded.block.set_name])
        expected = output_distance(dense, cut(**inputs), batch).mean()
        assert measured == pytest.approx(float(expected), rel=1e-3, abs=1e-6), folded.block.name
