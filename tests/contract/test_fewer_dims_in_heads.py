"""Every family whose heads can be narrower keeps its promises with fewer dimensions in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES, Family, completed, output
from isolation import outputs_without_stat_prune
from test_report import counted_macs
from test_second_pass import stream_error
from transformers import PreTrainedModel

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.choosing.head_dims import HeadDims
from stat_prune.data.calibration import CalibrationSet
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.families import find_blocks, stacks_of
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import head_projections, projection
from stat_prune.pipeline.inside_heads.measured_dims import head_dims_of
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.pipeline.solving_again.stream_solver import StreamSolver, can_move
from stat_prune.surgery.cut import apply
from stat_prune.surgery.linear_layers import correct_readers
from stat_prune.surgery.narrowing import NarrowedHeads, narrow


def offers(family: Family) -> bool:
    stacks = stacks_of(family.build())
    return all(one.own_dims for stack, _ in stacks for one in stack.attentions)


ROWS = [family for family in FAMILIES if offers(family)]


def calibration_of(model: PreTrainedModel, inputs: Any) -> CalibrationSet:
    rows = completed(model, inputs)
    count = len(next(iter(rows.values())))
    examples = [{name: values[n] for name, values in rows.items()} for n in range(count)]
    return calibration_set_for(model, examples, None, num_samples=count)


def dims_of(model: PreTrainedModel, inputs: Any) -> list[HeadDims]:
    calibration = calibration_of(model, inputs)
    heads = [block for block in find_blocks(model) if block.kind == "heads"]
    return head_dims_of(model, heads, calibration.batches, calibration.num_samples)


def narrower(model: PreTrainedModel, inputs: Any) -> list[NarrowedHeads]:
    """Two dimensions less for values, and for queries and keys where they can have fewer."""
    found = []
    for one in dims_of(model, inputs):
        size = one.block.unit_size
        fewer = size if one.query_key_multiple == size else size - 2
        found.append(one.narrowed(fewer, size - 2))
    return found


def narrowed(model: PreTrainedModel, inputs: Any) -> PreTrainedModel:
    narrow(model, narrower(model, inputs))
    return as_pruned_class(model)


def without_two_dimensions(model: PreTrainedModel, inputs: Any) -> PreTrainedModel:
    """The model with heads that make nothing of a pair of dimensions each."""
    for one in dims_of(model, inputs):
        size, base = one.block.unit_size, model.base_model
        _, keys, values = head_projections(base, one.block)
        of_keys = [] if one.query_key_multiple == size else [size // 2 - 1, size - 1]
        for layer, dims in ((keys, of_keys), (values, [0, 1])):
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor.data.unflatten(0, (-1, size))[:, dims] = 0
    return model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_what_makes_nothing_leaves_without_loss(
    family: Family, inputs: Any, implementation: str
) -> None:
    model = without_two_dimensions(family.build(), inputs)
    model.set_attn_implementation(implementation)
    dense = output(model, inputs)
    torch.testing.assert_close(output(narrowed(model, inputs), inputs), dense, rtol=1e-3, atol=1e-4)


def test_it_reloads_to_the_bit(family: Family, head: str, inputs: Any, tmp_path) -> None:
    model = narrowed(family.build(head), inputs)
    save_checkpoint(tmp_path / "out", model=model)
    assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), output(model, inputs))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_writing_with_the_cache_is_writing_without(
    writer: Family, inputs: Any, implementation: str
) -> None:
    model = narrowed(writer.build(writer.writing_head), inputs)
    model.set_attn_implementation(implementation)
    read = completed(model, inputs)
    given = {name: read[name] for name in read if not name.startswith("decoder_")}
    cached, ahead, computed = (
        model.generate(**given, min_new_tokens=6, max_new_tokens=6, do_sample=False, **options)
        for options in (
            {"use_cache": True},
            {"cache_implementation": "static", "disable_compile": True},
            {"use_cache": False},
        )
    )
    assert torch.equal(cached, computed)
    assert torch.equal(ahead, computed)


def test_all_dimensions_leave_a_model_as_it_is(family: Family, inputs: Any) -> None:
    model = family.build()
    dense = output(model, inputs)
    narrow(
        model,
        [
            one.narrowed(one.block.query_key_size, one.block.unit_size)
            for one in dims_of(model, inputs)
        ],
    )
    assert torch.equal(output(model, inputs), dense)
    assert not hasattr(model.config, "stat_prune")


def test_the_correction_is_solved_again_for_narrower_heads(family: Family, inputs: Any) -> None:
    """And the solution, told to the dense model, is the model that it was found on."""
    model = family.build()
    heads = [block for block in find_blocks(model) if block.kind == "heads"]
    if not any(map(can_move, heads)):
        pytest.skip("no consumer of these heads is solved for again")
    batches, dense = calibration_of(model, inputs).batches, output(model, inputs)
    first = Solution(
        [
            FoldedConsumer(
                one,
                torch.arange(one.num_units),
                projection(model.base_model, one.consumer).weight.detach().double(),
                bias=None,
                output_error=0.0,
            )
            for one in heads
        ],
        narrowed=narrower(model, inputs),
    )
    solver = StreamSolver(model, first, batches, ridges=[1e-3], input_ridges=[1e-3])
    again = solver.solve()
    moved = {one.name for one in heads if can_move(one)}
    assert moved <= solver.ridges.keys()
    once, twice = (stream_error(model, one.cut_copy(model), batches) for one in (first, again))
    assert twice < 0.9 * once
    assert torch.equal(output(model, inputs), dense)
    cut = family.build()
    apply(cut, again.folded)
    narrow(cut, again.narrowed)
    correct_readers(cut, again.head)
    expected = output(again.cut_copy(model), inputs)
    torch.testing.assert_close(output(cut, inputs), expected, rtol=0, atol=0)


def test_blocks_cost_what_torch_counts(family: Family, inputs: Any) -> None:
    """And what the parameters of their linear layers are."""
    model = narrowed(family.build(attn_implementation="eager"), inputs)
    one = {name: values[:1] for name, values in inputs.items()}
    lengths = masks_of(model, one)
    blocks = find_blocks(model)
    macs = sum(b.macs(b.num_units, b.num_groups, lengths) for b in blocks)
    # Norms of heads, and what a kernel of norms or convolutions counts, are no blocks.
    assert macs == pytest.approx(counted_macs(model, family.stacks, one), rel=0.005)
    whole = find_blocks(family.build())
    assert macs < 0.95 * sum(b.macs(b.num_units, b.num_groups, lengths) for b in whole)
    layers = [projection(model.base_model, p.path) for b in blocks for p in b.producers]
    layers += [projection(model.base_model, b.consumer) for b in blocks]
    held = {id(tensor): tensor.numel() for layer in layers for tensor in layer.held_in}
    assert sum(b.parameters(b.num_units, b.num_groups) for b in blocks) == sum(held.values())


def masks_of(model: PreTrainedModel, inputs: Any) -> dict[str, float]:
    """Tokens a sequence, by mask, of one that is all real."""
    calibration = calibration_set_for(
        model, [{k: v[0] for k, v in completed(model, inputs).items()}], None, num_samples=1
    )
    return dict(calibration.mean_lengths)


def test_folders_open_without_stat_prune(inputs: Any, tmp_path: Any) -> None:
    models = [narrowed(family.build(), inputs) for family in ROWS]
    folders = []
    for number, model in enumerate(models):
        save_checkpoint(tmp_path / str(number), model=model)
        folders.append((tmp_path / str(number), "AutoModel"))
    batches = [completed(model, inputs) for model in models]
    found = outputs_without_stat_prune(folders, batches, tmp_path)
    for family, one, model in zip(ROWS, found, models, strict=True):
        assert torch.equal(one, output(model, inputs)), family.label


def test_a_budget_is_met_and_a_second_pruning_reads_the_result(family: Family, prune: Any) -> None:
    model = family.build(family.classifier)
    result = prune(model, MACs(0.6), head_dims=True, effort="fast")
    before, after = result.report.before, result.report.after
    assert after.block_macs <= 0.6 * before.block_macs
    assert len(result.report.head_dims.distances) == 2
    again = prune(result.model, MACs(0.7))
    assert again.report.after.block_macs <= 0.7 * after.block_macs
