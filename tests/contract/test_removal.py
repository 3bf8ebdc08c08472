"""A budget may remove whole blocks: where that costs nothing, within limits, and never unasked."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, Family, output
from test_models import assert_untouched

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.choosing.correction import fold
from stat_prune.data.calibration import build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.projections import projection
from stat_prune.pipeline.loaded_model import LoadedModel
from stat_prune.pipeline.probes import sensitivities
from stat_prune.pipeline.resuming import FinishedWork
from stat_prune.pipeline.run import start_run
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.pipeline.solving_again.stream_solver import StreamSolver, can_move
from stat_prune.settings.settings import Settings
from stat_prune.surgery.cut import pruned_copy

BY_LABEL = {family.label: family for family in FAMILIES}


def silenced(family: Family):
    """A model whose blocks in even layers that can be removed add nothing, and those blocks."""
    # Neurons that ReLU never lets through would leave for nothing too.
    config = {"activation_function": "gelu"} if family.name == "OPT" else {}
    model = family.build(family.classifier, **config)
    silent = [b for b in find_blocks(model) if b.removable and not b.fixed and b.layer % 2 == 0]
    with torch.no_grad():
        for block in silent:
            projection(model.base_model, block.consumer).weight.zero_()
    return model, silent


def share_of_others(model, silent) -> float:
    """Fraction of the block parameters that are not of these blocks, but for their biases."""
    blocks = find_blocks(model)
    names = {block.name for block in silent}
    left = [(b, 0, 0) if b.name in names else (b, b.num_units, b.num_groups) for b in blocks]
    return sum(b.parameters(units, groups) for b, units, groups in left) / sum(
        b.parameters(b.num_units, b.num_groups) for b in blocks
    )


def test_blocks_that_add_nothing_leave_altogether_and_nothing_is_lost(
    family: Family, prune, inputs, tmp_path
):
    model, silent = silenced(family)
    expected = output(model, inputs)
    result = prune(model, Parameters(share_of_others(model, silent)), remove_blocks=True)
    names = {block.name for block in silent}
    for row in result.report.blocks:
        assert (row.kept == 0) == (row.kept_groups == 0) == (row.name in names), row.name
    torch.testing.assert_close(output(result.model, inputs), expected, rtol=1e-4, atol=1e-4)
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))
    again = prune(loaded, MACs(0.7))
    left = {row.name: row for row in again.report.blocks}
    assert all(left[name].kept == left[name].total == 0 for name in names)


@pytest.mark.parametrize(
    "settings",
    [{}, {"remove_blocks": True, "uniform": True}, {"remove_blocks": True, "method": "id-even"}],
    ids=["by default", "in uniform mode", "by even methods"],
)
@pytest.mark.parametrize("label", ["Bert", "Llama", "T5"])
def test_something_stays_of_every_block(label, prune, settings):
    model, _ = silenced(BY_LABEL[label])
    result = prune(model, MACs(0.6), **settings)
    assert all(row.kept > 0 for row in result.report.blocks)


@pytest.mark.layouts
def test_with_removal_the_least_is_one_unit_of_one_block(family: Family, prune):
    model = family.build()
    before = copy.deepcopy(model)
    with pytest.raises(TargetError, match="one head or the fewest neurons") as caught:
        prune(model, MACs(1e-5), remove_blocks=True)
    assert_untouched(model, before)
    least = float(str(caught.value).split(" cost ")[1].split(" ")[0])
    result = prune(model, MACs(min(least * 1.001, 1.0)), remove_blocks=True)
    cut = [
        row
        for block, row in zip(find_blocks(model), result.report.blocks, strict=True)
        if block.removable and not block.fixed
    ]
    assert any(row.kept for row in result.report.blocks)
    assert sum(row.kept == 0 for row in cut) >= len(cut) - 1


@pytest.mark.parametrize("label", ["Bert", "Llama"])
def test_a_removed_block_has_the_price_that_its_removal_shows(label, texts, word_tokenizer):
    model = BY_LABEL[label].build("ForSequenceClassification")
    settings = Settings(remove_blocks=True, progress=False)
    with start_run(model, texts, word_tokenizer, settings) as run:
        source = LoadedModel(run, FinishedWork(run))
        blocks = source.measure()
        weights = sensitivities(source, blocks)
        batches = run.probe_batches(1.0)
    for one, weight in zip(blocks, weights, strict=True):
        sizes = one.candidates
        removed = pruned_copy(model, [fold(one.statistics, sizes.units(0))])
        measured = distance(model, removed, batches, output_distance)
        foretold = float(weight[-1] * sizes.output_errors[0])
        price = float(weight[0] * sizes.output_errors[0])
        assert price == pytest.approx(max(measured, foretold), rel=1e-3)
        assert torch.equal(weight[1:], weight[-1:].expand(len(weight) - 1))


def test_a_tolerance_that_removes_everything_is_refused(prune):
    with pytest.raises(TargetError, match="nothing would be left .* remove_blocks=False"):
        prune(FAMILIES[0].build(), Tolerance(1.0), remove_blocks=True)


def test_a_second_pass_gives_a_removed_block_the_mean_that_it_lacks(
    family: Family, texts, word_tokenizer
):
    model = family.build()
    calibration = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=16, complete=Completion(model)
    )
    blocks = [b for b in find_blocks(model) if b.removable and can_move(b) and not b.fixed]
    if not blocks or not blocks[-1].consumer_bias:
        pytest.skip(f"no removed block of {family.name} leaves a bias")
    moments = collect_moments(model, blocks[-1:], calibration.batches)
    (statistics,) = statistics_of(model.base_model, blocks[-1:], moments)
    folded = fold(statistics, torch.empty(0, dtype=torch.int64))
    assert folded.bias is not None
    other = replace(folded, bias=torch.zeros_like(folded.bias))
    solver = StreamSolver(
        model, Solution([other]), calibration.batches, ridges=[1.0], input_ridges=[1.0]
    )
    (again,) = solver.solve().folded
    assert again.weight.shape == (blocks[-1].output_size, 0)
    torch.testing.assert_close(again.bias, folded.bias, rtol=1e-4, atol=1e-4)
