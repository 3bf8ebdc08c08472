"""The second pass: all layers make up for what the blocks before them have changed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from families import FAMILIES, Family
from transformers.models.bert.modeling_bert import BertEmbeddings, BertSelfOutput

from stat_prune.choosing.correction import fold
from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.families import find_blocks, transformer_layers
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.residual_stream import ResidualStream
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.running import model_inputs
from stat_prune.pipeline.solving_again.held_out_fit import Fitted, HeldOutFit
from stat_prune.pipeline.solving_again.second_pass import (
    INPUT_RIDGES,
    RIDGES,
    best_pass,
    can_solve_again,
)
from stat_prune.pipeline.solving_again.solution import Solution
from stat_prune.pipeline.solving_again.stream_readers import correctable_producers, head_layers
from stat_prune.pipeline.solving_again.stream_solver import StreamSolver, can_move
from stat_prune.surgery.cut import pruned_copy
from stat_prune.surgery.layerwise import stack_numbers


@pytest.fixture
def pruned_once(family: Family, pruned_halves):
    """A model that is left as it was, its calibration set, and half of each block."""
    return pruned_halves(family)


@pytest.fixture(scope="module")
def pruned_halves(texts, word_tokenizer):
    """`pruned_once`, made once a family."""
    made = {}

    def of(family: Family):
        if family.label not in made:
            made[family.label] = halved(family, texts, word_tokenizer)
        if made[family.label] is None:
            pytest.skip(f"nothing that {family.name} has can be solved again")
        return made[family.label]

    return of


def halved(family: Family, texts, word_tokenizer):
    model = family.build()
    calibration = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=16, complete=Completion(model)
    )
    blocks = [block for block in find_blocks(model) if not block.fixed]
    if not can_solve_again(model, blocks):
        return None
    moments = collect_moments(model, blocks, calibration.batches)
    folded = [
        fold(one, torch.arange(one.block.num_units // 2))
        for one in statistics_of(model.base_model, blocks, moments)
    ]
    return model, calibration, folded


def solved_again(model, folded, batches, held_out=(), *, ridges, input_ridges=None):
    """Consumers, producers and heads, with the same ridges unless told otherwise."""
    input_ridges = ridges if input_ridges is None else input_ridges
    first = Solution(folded)
    solver = StreamSolver(model, first, batches, held_out, ridges=ridges, input_ridges=input_ridges)
    return solver.solve(), solver.ridges


def copy_of(model, solution):
    return pruned_copy(model, solution.folded, solution.head)


@torch.no_grad()
def last_stream(model, batch):
    """What the last layer returns."""
    seen = []
    handle = transformer_layers(model)[-1].register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    model(**model_inputs(model, batch, torch.device("cpu")))
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def last_mask(model, batch):
    """Where the tokens are real that the last layer reads."""
    return token_mask(batch, find_blocks(model)[-1].mask)


def stream_error(model, pruned, batches):
    """Squared difference of the streams behind the last layers, over real tokens."""
    return sum(
        float(
            (last_stream(model, batch) - last_stream(pruned, batch))[last_mask(model, batch)]
            .double()
            .square()
            .sum()
        )
        for batch in batches
    )


def test_the_stream_comes_closer_to_the_dense_one(pruned_once):
    model, calibration, folded = pruned_once
    before = stream_error(model, pruned_copy(model, folded), calibration.batches)
    again, _ = solved_again(model, folded, calibration.batches, ridges=[1e-3])
    after = stream_error(model, copy_of(model, again), calibration.batches)
    if any(can_move(one.block) for one in folded):
        assert after < 0.95 * before
    assert all(torch.equal(a.units, b.units) for a, b in zip(again.folded, folded, strict=True))


@torch.no_grad()
def inputs_of(model, paths, batches):
    """By path below the model, what linear layers read, batch by batch."""
    seen = {path: [] for path in paths}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, path=path: seen[path].append(args[0])
        )
        for path in paths
    ]
    for batch in batches:
        model(**model_inputs(model, batch, torch.device("cpu")))
    for handle in handles:
        handle.remove()
    return seen


def test_what_reads_the_stream_is_told_what_it_would_read_in_the_dense_model(pruned_once):
    model, calibration, folded = pruned_once
    again, _ = solved_again(model, folded, calibration.batches, ridges=[1e-3])
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    readings = {one.paths[0]: one for one in again.head}
    for one in again.folded:
        readings |= {prefix + reading.paths[0]: reading for reading in one.readings}
    assert readings
    dense = inputs_of(model, readings, calibration.batches)
    pruned = inputs_of(copy_of(model, again), readings, calibration.batches)
    for path, reading in readings.items():
        before = after = 0.0
        for batch, wanted, read in zip(calibration.batches, dense[path], pruned[path], strict=True):
            mask = next(
                (m for name, m in batch.items() if "mask" in name and m.shape == read.shape[:-1]),
                torch.ones(read.shape[:-1]),
            ).bool()
            told = read + read @ reading.change + (0 if reading.shift is None else reading.shift)
            before += float((read - wanted)[mask].square().sum())
            after += float((told - wanted)[mask].square().sum())
        assert after < before, path


@pytest.mark.layouts
def test_a_large_ridge_leaves_the_weights_of_the_first_pass(pruned_once):
    model, calibration, folded = pruned_once
    again, _ = solved_again(model, folded, calibration.batches, ridges=[1e12])
    for first, second in zip(folded, again.folded, strict=True):
        torch.testing.assert_close(second.weight, first.weight, rtol=1e-6, atol=1e-9)
    readings = [*again.head, *(reading for one in again.folded for reading in one.readings)]
    assert readings
    assert all(one.change.abs().max() < 1e-6 for one in readings)


def test_with_one_block_cut_there_is_nothing_to_make_up_for(pruned_once):
    """What least squares leaves is orthogonal to its own inputs."""
    model, calibration, folded = pruned_once
    blocks = [one.block for one in folded]
    moments = collect_moments(model, blocks, calibration.batches)
    statistics = statistics_of(model.base_model, blocks, moments)
    last = [fold(one, torch.arange(one.block.num_units)) for one in statistics]
    movable = [i for i, block in enumerate(blocks) if can_move(block)]
    if not movable:
        pytest.skip("the stream gets no consumer's output as it is")
    index = movable[-2]
    last[index] = folded[index]
    again, _ = solved_again(model, last, calibration.batches, ridges=[1e-6], input_ridges=[1e12])
    for first, second in zip(last, again.folded, strict=True):
        torch.testing.assert_close(second.weight, first.weight, rtol=1e-2, atol=1e-4)


@pytest.mark.layouts
def test_padding_and_batches_change_nothing(pruned_once, texts, word_tokenizer):
    """In what the models do: the weight of a channel that hardly varies is ill-determined."""
    model, calibration, folded = pruned_once
    other = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=5, complete=Completion(model)
    )
    one, two = (
        copy_of(model, solved_again(model, folded, batches, ridges=[0.1])[0])
        for batches in (calibration.batches, other.batches)
    )
    for batch in calibration.batches:
        kept = last_mask(model, batch)
        torch.testing.assert_close(
            last_stream(one, batch)[kept], last_stream(two, batch)[kept], rtol=1e-4, atol=1e-4
        )


@pytest.mark.layouts
def test_what_is_best_on_held_out_sequences_is_taken(pruned_once):
    model, calibration, folded = pruned_once
    taken, found = best_pass(model, Solution(folded), calibration, output_distance, seed=0)
    moved = {one.block.name for one in folded if can_move(one.block)}
    read = {path for one in folded for path in correctable_producers(one.block)} | set(
        head_layers(model)
    )
    assert moved <= found.ridges.keys() <= moved | read
    assert {found.ridges[name] for name in moved} <= {*RIDGES, None}
    assert {ridge for name, ridge in found.ridges.items() if name in read} <= {*INPUT_RIDGES, None}
    _, held_out = calibration.split(calibration.num_samples // 8, seed=0)
    measured = distance(model, copy_of(model, taken), held_out.batches, output_distance)
    name = "second pass" if found.taken else "first pass"
    assert measured == pytest.approx(found.distances[name], rel=1e-5)


def test_what_is_clearly_farther_on_held_out_sequences_is_not_taken(pruned_once, monkeypatch):
    model, calibration, folded = pruned_once
    if not any(can_move(one.block) for one in folded):
        pytest.skip("nothing that the last hidden states depend on is solved for")
    best = HeldOutFit.best

    def ruinous(fit: HeldOutFit, ridges):
        found = best(fit, ridges)
        return Fitted(1.0, torch.ones_like(found.change), found.shift)

    monkeypatch.setattr(HeldOutFit, "best", ruinous)
    taken, found = best_pass(model, Solution(folded), calibration, output_distance, seed=0)
    assert found.distances["second pass"] > found.distances["first pass"]
    assert not found.taken and taken.folded == folded


@pytest.mark.layouts
def test_the_ridge_is_that_of_least_error_on_held_out_sequences(pruned_once):
    """Where what is held out is what was solved on, the smallest."""
    model, calibration, folded = pruned_once
    batches = calibration.batches
    _, ridges = solved_again(model, folded, batches, batches, ridges=[1.0, 1e-3, 1e3])
    numbers = stack_numbers(model)
    firsts = {numbers.index(number) for number in numbers}  # what they read has not changed
    first = {
        path
        for one in folded
        if one.block.layer in firsts
        for path in correctable_producers(one.block)
    }
    assert {ridge for name, ridge in ridges.items() if name not in first} == {1e-3}


def test_what_a_layer_returns_is_what_it_returns_when_it_is_computed(pruned_once, monkeypatch):
    model, calibration, folded = pruned_once
    moved, _ = solved_again(model, folded, calibration.batches, ridges=[0.1])
    monkeypatch.setattr(ResidualStream, "returned_after", lambda *_: None)
    computed, _ = solved_again(model, folded, calibration.batches, ridges=[0.1])
    one, two = (copy_of(model, solution) for solution in (moved, computed))
    for batch in calibration.batches:
        kept = last_mask(model, batch)
        torch.testing.assert_close(
            last_stream(one, batch)[kept], last_stream(two, batch)[kept], rtol=1e-4, atol=1e-4
        )


def test_neither_attention_nor_embeddings_are_computed_twice(texts, word_tokenizer, monkeypatch):
    (family,) = (one for one in FAMILIES if one.name == "Bert")
    model, calibration, folded = halved(family, texts, word_tokenizer)
    calls = Counter()
    for module in (BertSelfOutput, BertEmbeddings):
        forward = module.forward

        def counting(*args, _forward=forward, _name=module.__name__, **kwargs):
            calls[_name] += 1
            return _forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", counting)
    solved_again(model, folded, calibration.batches, ridges=[0.1])
    batches = len(calibration.batches)
    # Of the dense model and of the pruned one; the embeddings are the same.
    assert calls["BertSelfOutput"] == 2 * batches * len(transformer_layers(model))
    assert calls["BertEmbeddings"] == batches


@pytest.mark.layouts
def test_the_model_is_left_as_it_was(pruned_once):
    model, calibration, folded = pruned_once
    before = {name: value.clone() for name, value in model.state_dict().items()}
    solved_again(model, folded, calibration.batches, ridges=[0.1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
