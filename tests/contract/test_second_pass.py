"""The second pass: each consumer makes up for what the blocks before it have changed."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, Family

from stat_prune import MACs
from stat_prune.choosing.correction import fold
from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.errors import SettingsError
from stat_prune.families import find_blocks, transformer_layers
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.residual_stream import ResidualStream
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.running import model_inputs
from stat_prune.pipeline.second_pass import best_pass, can_move, pruned_copy, restream


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
            pytest.skip(f"the stream of {family.name} gets no consumer's output as it is")
        return made[family.label]

    return of


def halved(family: Family, texts, word_tokenizer):
    model = family.build()
    calibration = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=16, complete=Completion(model)
    )
    blocks = [block for block in find_blocks(model) if not block.fixed]
    if not any(map(can_move, blocks)):
        return None
    moments = collect_moments(model, blocks, calibration.batches)
    folded = [
        fold(one, torch.arange(one.block.num_units // 2))
        for one in statistics_of(model.base_model, blocks, moments)
    ]
    return model, calibration, folded


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
    again, _ = restream(model, folded, calibration.batches, ridges=[1e-3])
    after = stream_error(model, pruned_copy(model, again), calibration.batches)
    assert after < 0.95 * before
    assert all(torch.equal(a.units, b.units) for a, b in zip(again, folded, strict=True))


@pytest.mark.layouts
def test_a_large_ridge_leaves_the_weights_of_the_first_pass(pruned_once):
    model, calibration, folded = pruned_once
    for first, second in zip(
        folded, restream(model, folded, calibration.batches, ridges=[1e12])[0], strict=True
    ):
        torch.testing.assert_close(second.weight, first.weight, rtol=1e-6, atol=1e-9)


def test_with_one_block_cut_there_is_nothing_to_make_up_for(pruned_once):
    """What least squares leaves is orthogonal to its own inputs."""
    model, calibration, folded = pruned_once
    blocks = [one.block for one in folded]
    moments = collect_moments(model, blocks, calibration.batches)
    statistics = statistics_of(model.base_model, blocks, moments)
    last = [fold(one, torch.arange(one.block.num_units)) for one in statistics]
    index = [i for i, block in enumerate(blocks) if can_move(block)][-2]
    last[index] = folded[index]
    for first, second in zip(
        last, restream(model, last, calibration.batches, ridges=[1e-6])[0], strict=True
    ):
        torch.testing.assert_close(second.weight, first.weight, rtol=1e-2, atol=1e-4)


@pytest.mark.layouts
def test_padding_and_batches_change_nothing(pruned_once, texts, word_tokenizer):
    """In what the models do: the weight of a channel that hardly varies is ill-determined."""
    model, calibration, folded = pruned_once
    other = build_calibration_set(
        texts, tokenizer=word_tokenizer, batch_size=5, complete=Completion(model)
    )
    one, two = (
        pruned_copy(model, restream(model, folded, batches, ridges=[0.1])[0])
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
    taken, found = best_pass(model, folded, calibration, output_distance, seed=0)
    first, again = found.distances["first pass"], found.distances["second pass"]
    assert found.taken == (again < first)
    moved = {one.block.name for one in folded if can_move(one.block)}
    assert found.ridges.keys() == moved and set(found.ridges.values()) <= {1.0, 0.3, None}
    _, held_out = calibration.split(calibration.num_samples // 8, seed=0)
    measured = distance(model, pruned_copy(model, taken), held_out.batches, output_distance)
    assert measured == pytest.approx(min(first, again), rel=1e-5)


@pytest.mark.layouts
def test_the_ridge_is_that_of_least_error_on_held_out_sequences(pruned_once):
    """Where what is held out is what was solved on, the smallest."""
    model, calibration, folded = pruned_once
    batches = calibration.batches
    _, ridges = restream(model, folded, batches, batches, ridges=[1.0, 1e-3, 1e3])
    assert set(ridges.values()) == {1e-3}


def test_what_a_layer_returns_is_what_it_returns_when_it_is_computed(pruned_once, monkeypatch):
    model, calibration, folded = pruned_once
    moved, _ = restream(model, folded, calibration.batches, ridges=[0.1])
    monkeypatch.setattr(ResidualStream, "output_after", lambda *_: None)
    computed, _ = restream(model, folded, calibration.batches, ridges=[0.1])
    one, two = (pruned_copy(model, solution) for solution in (moved, computed))
    for batch in calibration.batches:
        kept = last_mask(model, batch)
        torch.testing.assert_close(
            last_stream(one, batch)[kept], last_stream(two, batch)[kept], rtol=1e-4, atol=1e-4
        )


@pytest.mark.layouts
def test_the_model_is_left_as_it_was(pruned_once):
    model, calibration, folded = pruned_once
    before = {name: value.clone() for name, value in model.state_dict().items()}
    restream(model, folded, calibration.batches, ridges=[0.1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("label", ["Gemma2", "Olmo2"])
def test_a_second_pass_is_refused_where_it_could_change_nothing(prune, label):
    (family,) = (one for one in FAMILIES if one.label == label)
    with pytest.raises(SettingsError, match="Use passes=1"):
        prune(family.build(), MACs(0.6), passes=2)
