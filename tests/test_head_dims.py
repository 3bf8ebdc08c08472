"""Dimensions inside heads: the best low-rank products, in models that are ordinary afterwards."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_pruned import assert_costs_what_torch_counts
from isolation import outputs_without_stat_prune
from test_searching import pruned, rows
from tiny_models import SIZES, tiny_bert
from transformers import (
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

import stat_prune
from stat_prune import Bytes, MACs, Parameters, Tolerance
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.choosing.head_dims import HeadDims, _positive
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.families import find_blocks
from stat_prune.linalg import Moments, low_rank
from stat_prune.pipeline.inside_heads import dims_search, narrowing_heads
from stat_prune.reporting.report import PruningReport
from stat_prune.surgery.narrowing import narrow, narrowed_copy

HEADS, SIZE, WIDTH = 4, 8, 32
IDS = torch.stack([row["input_ids"] for row in rows(6, seed=7)])


def built(model_class, config, **others):
    torch.manual_seed(0)
    return model_class(config(**SIZES | others)).eval()


MODELS = {
    "Bert": lambda: tiny_bert(BertForSequenceClassification),
    "Roberta": lambda: built(RobertaModel, RobertaConfig),
    "Electra": lambda: built(ElectraForMaskedLM, ElectraConfig, embedding_size=16),
}


def head_blocks(model):
    return [block for block in find_blocks(model) if block.kind == "heads"]


def dims_of(model, ids=IDS) -> list[HeadDims]:
    """What is known of each layer's heads from some ids."""
    found, seen = [], {}
    base = model.base_model
    handles = [
        base.get_submodule(path).register_forward_pre_hook(
            lambda _module, args, path=path: seen.update({path: args[0].reshape(-1, WIDTH)})
        )
        for block in head_blocks(model)
        for path in (block.producers[0].path,)
    ]
    readers = [
        base.get_submodule(block.consumer).register_forward_pre_hook(
            lambda _module, args, path=block.consumer: seen.update({path: args[0].flatten(0, 1)})
        )
        for block in head_blocks(model)
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles + readers:
        handle.remove()
    for block in head_blocks(model):
        moments = []
        for path in (block.producers[0].path, block.consumer):
            one = Moments(seen[path].shape[1])
            one.update(seen[path])
            moments.append(one)
        found.append(HeadDims(base, block, *moments))
    return found


def narrowed_model(name="Bert", sizes=((5, 3), (8, 6))):
    """A model with so many query/key and value dimensions in each head of its layers."""
    model = MODELS[name]()
    narrow(model, [one.narrowed(*pair) for one, pair in zip(dims_of(model), sizes, strict=True)])
    return as_pruned_class(model)


@torch.no_grad()
def output(model, ids=IDS, **options):
    return model(input_ids=ids, **options)[0]


def scores_of_first_layer(model, states):
    """By head, before softmax, about the mean over the keys; of every pair of states."""
    attention = model.base_model.encoder.layer[0].attention.self
    queries, keys = (
        layer(states).unflatten(-1, (HEADS, -1)).transpose(0, 1)
        for layer in (attention.query, attention.key)
    )
    scores = queries @ keys.mT * attention.scaling
    return (scores - scores.mean(-1, keepdim=True)).double()


def states_of_first_layer(model):
    with torch.no_grad():
        return model.base_model.embeddings(input_ids=IDS).flatten(0, 1)


@pytest.mark.parametrize("rank", [2, 5])
def test_scores_are_the_nearest_of_their_rank_over_all_pairs_of_tokens(rank):
    model = tiny_bert(BertForSequenceClassification)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # a fresh model has none to speak of
            torch.nn.init.normal_(parameter)
    states = states_of_first_layer(model)
    first = dims_of(model)[0]
    narrowed = first.narrowed(rank, SIZE)
    with torch.no_grad():
        dense = scores_of_first_layer(model, states)
        cut = scores_of_first_layer(narrowed_copy(model, [], [narrowed]), states)
    lost = np.linalg.svd(dense.numpy(), compute_uv=False)[:, rank:]
    least = (lost**2).sum() / len(states) ** 2
    found = float((cut - dense).square().sum()) / len(states) ** 2
    assert found == pytest.approx(least, rel=1e-4)
    assert float(first.query_key_errors[:, rank].sum()) == pytest.approx(least, rel=1e-4)
    relative = float((cut - dense).norm() / dense.norm())
    assert narrowed.score_error == pytest.approx(relative, rel=1e-4)


def test_values_lose_no_more_than_is_predicted_before_heads_make_up_for_each_other():
    model = tiny_bert(BertForSequenceClassification)
    dims = dims_of(model)
    layer = model.base_model.encoder.layer[0].attention
    seen = []
    handle = layer.output.dense.register_forward_hook(lambda *args: seen.append(args[2].double()))
    dense = output(model) is not None and seen.pop()
    handle.remove()
    previous, bias = 0.0, layer.output.dense.bias.double()
    for size in (7, 5, 3, 1):
        narrowed = dims[0].narrowed(SIZE, size)
        copied = narrowed_copy(model, [], [narrowed])
        reads = copied.base_model.encoder.layer[0].attention.output.dense
        reads.register_forward_hook(lambda *args: seen.append(args[2].double()))
        output(copied)
        lost = (seen.pop() - dense).norm()
        assert narrowed.output_error == pytest.approx(float(lost / (dense - bias).norm()), rel=1e-4)
        error = float((lost / dense.norm()).square())
        assert previous < error <= float(dims[0].value_errors[:, size].sum()) * (1 + 1e-6)
        previous = error


def test_products_of_low_rank_lose_nothing():
    model = tiny_bert(BertForSequenceClassification)
    for block in head_blocks(model):
        queries, _, values = (model.base_model.get_submodule(p.path) for p in block.producers)
        for layer, rank in ((queries, 3), (values, 2)):
            layer.bias.data.normal_()
            for head in layer.weight.data.split(SIZE):
                head.copy_((torch.rand(SIZE, rank) - 0.5) @ torch.randn(rank, WIDTH))
    dense = output(model)
    # The query's bias is a direction of its own.
    narrow(model, [one.narrowed(4, 2) for one in dims_of(model)])
    torch.testing.assert_close(output(model), dense, rtol=1e-3, atol=1e-4)


def test_moments_that_sums_in_float32_have_made_indefinite_are_those_of_a_metric():
    rows = torch.randn(500, 2) @ torch.randn(2, SIZE) + 30
    moments = (rows.T @ rows).double()
    assert torch.linalg.eigvalsh(moments)[0] < 0
    for wrong in (moments, moments - 1e-3 * torch.eye(SIZE), torch.zeros(1, 1).double()):
        found = _positive(wrong)
        low_rank(torch.eye(len(wrong)).double(), metric=found, centered=False)
        torch.testing.assert_close(found, wrong, rtol=0, atol=1e-5 * float(moments.max()))
    plain = moments + torch.eye(SIZE)
    assert torch.equal(
        _positive(plain), plain + 1e-7 * plain.diagonal().max() * torch.eye(SIZE).double()
    )


def test_all_dimensions_leave_a_model_as_it_is():
    model = tiny_bert(BertForSequenceClassification)
    narrow(model, [one.narrowed(SIZE, SIZE) for one in dims_of(model)])
    assert torch.equal(output(model), output(tiny_bert(BertForSequenceClassification)))
    assert not hasattr(model.config, "stat_prune")


@pytest.mark.parametrize("name", MODELS)
def test_a_narrowed_model_reloads_to_the_bit(name, tmp_path):
    model = narrowed_model(name)
    model.save_pretrained(tmp_path)
    loaded = stat_prune.load(tmp_path)
    assert torch.equal(output(loaded), output(model))
    record = json.loads((tmp_path / "config.json").read_text())["stat_prune"]
    assert record["head_dims"]["encoder.layer.0.attention.self"] == {"query_key": 5, "value": 3}


def test_a_narrowed_model_opens_without_stat_prune(tmp_path):
    model = narrowed_model()
    model.save_pretrained(tmp_path / "out")
    folders = [(tmp_path / "out", "AutoModelForSequenceClassification")]
    (found,) = outputs_without_stat_prune(folders, [{"input_ids": IDS}], tmp_path)
    assert torch.equal(found, output(model))


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_what_torch_counts(name):
    assert_costs_what_torch_counts(narrowed_model(name), IDS[:1])


def test_attention_is_that_of_the_narrowed_heads_in_each_implementation():
    model = narrowed_model()
    mask = torch.ones_like(IDS)
    mask[:3, -2:] = 0
    fused = output(model, attention_mask=mask)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(output(model, attention_mask=mask), fused)
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=mask, output_attentions=True).attentions
    assert [one.shape[1] for one in found] == [HEADS, HEADS]
    torch.testing.assert_close(found[0].sum(-1), torch.ones(found[0].shape[:-1]))


def test_a_narrowed_model_is_pruned_again():
    model = narrowed_model()
    result = pruned(model, target=Parameters(0.6), effort="fast")
    assert result.report.after.block_parameters <= 0.6 * result.report.before.block_parameters
    assert result.model.config.stat_prune["head_dims"]
    assert output(result.model).shape == output(model).shape


def test_a_budget_is_kept(tmp_path):
    result = pruned(tiny_bert(BertForSequenceClassification), target=MACs(0.5), head_dims=True)
    found = result.report.head_dims
    first, *others = found.distances
    assert first == "0.5"
    assert others
    assert found.taken in found.distances
    assert found.sequences == 8
    before, after = result.report.before, result.report.after
    assert after.block_macs <= 0.5 * before.block_macs
    kept = {
        block.name: [block.query_key_size, block.unit_size] for block in head_blocks(result.model)
    }
    assert all(kept[name] == sizes for name, sizes in found.sizes.items())
    assert PruningReport.from_dict(json.loads(result.report.to_json())) == result.report
    assert "dimensions" in str(result.report)
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))


def test_the_report_has_the_search_of_blocks_and_that_of_dimensions():
    """Whether dimensions leave or not, of each target of a family what it took itself."""
    targets = [MACs(0.5), MACs(0.7)]
    results = stat_prune.prune_family(
        tiny_bert(BertForSequenceClassification),
        rows(72),
        targets=targets,
        head_dims=True,
        num_calibration_samples=64,
        progress=False,
    )
    first, second = (result.report for result in results)
    assert first.head_dims.sizes
    for report, target in ((first, targets[0]), (second, targets[1])):
        alone = pruned(tiny_bert(BertForSequenceClassification), target=target).report
        assert report.search == replace(alone.search, passes=report.search.passes)
        found = report.head_dims
        assert found.evaluations > 1
        text = " ".join(str(report).split())
        assert f"budget {report.search}" in text
        assert f"{found.evaluations} spreads measured; {found.passes:.1f} passes" in text
    # A pass for the moments of states, and the probes of dimensions, are for all targets.
    num_probes = 1 + 2 * SIZES["num_hidden_layers"]
    assert first.head_dims.passes > second.head_dims.passes + 1
    assert first.head_dims.passes < 1 + num_probes + 2 * (first.head_dims.evaluations + 1)


def test_one_budget_is_shared_with_embeddings_too(tmp_path):
    model = tiny_bert(BertForSequenceClassification, vocab_size=256)
    result = pruned(model, target=Bytes(0.6), head_dims=True, effort="fast")
    assert result.report.head_dims.distances
    whole, left = (
        sum(one.numel() * one.element_size() for one in each.parameters())
        for each in (model, result.model)
    )
    assert left <= 0.6 * whole
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))


def test_trials_are_cut_from_the_model_that_is_compared_in_the_end(monkeypatch):
    """With factored embeddings, where a target has them; what dimensions do is probed alone."""
    factored = []

    def noting(model, folded, narrowed):
        table = model.get_input_embeddings()
        factored.append(table.weight.shape[1] < WIDTH)
        return narrowed_copy(model, folded, narrowed)

    monkeypatch.setattr(dims_search, "narrowed_copy", noting)
    pruned(target=MACs(0.5, embeddings=0.5), head_dims=True, effort="fast")
    probed = 1 + 2 * SIZES["num_hidden_layers"]
    assert not any(factored[:probed])
    assert len(factored) > probed
    assert all(factored[probed:])


def test_dimensions_come_in_multiples():
    result = pruned(target=MACs(0.5), head_dims=True, round_to=4, effort="fast")
    for block in head_blocks(result.model):
        assert block.unit_size % 4 == block.query_key_size % 4 == 0


def test_what_cannot_be_narrowed_is_refused_before_any_work():
    for model in (built(MPNetModel, MPNetConfig), tiny_bert(is_decoder=True)):
        with pytest.raises(ModelError, match="BERT's attention"):
            pruned(model, head_dims=True)
    for target in (Tolerance(0.1), MACs({"heads": 0.5})):
        with pytest.raises(TargetError, match="one fraction"):
            pruned(target=target, head_dims=True)
    for options in (
        {"uniform": True},
        {"method": "magnitude"},
        {"budget": "even"},
        {"serve_with": "mlx"},
    ):
        with pytest.raises(SettingsError, match="head_dims=True"):
            pruned(head_dims=True, **options)
    with pytest.raises(SettingsError, match="no heads"):
        pruned(head_dims=True, ignore="heads")


def test_a_finish_fits_a_narrowed_model(tmp_path):
    model = tiny_bert(BertForSequenceClassification)
    result = pruned(model, target=MACs(0.4), head_dims=True, effort="fast", finish="scales")
    before, after = result.report.before, result.report.after
    assert after.block_macs <= 0.4 * before.block_macs
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))


@pytest.mark.parametrize(
    ("narrower", "taken"),
    [([1.1, 2.1, 3.1, 4.1], False), ([0.9, 1.9, 2.9, 3.9], True), ([9.0, 0.1, 0.1, 4.1], True)],
)
def test_whole_heads_stay_where_held_out_sequences_are_sure(monkeypatch, narrower, taken):
    """Which they are of the first alone; those of the last scatter."""
    values = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(narrower)]
    monkeypatch.setattr(
        narrowing_heads,
        "distances_by_sequence",
        lambda _outputs, _objective, names: dict(zip(names, values, strict=True)),
    )
    found = pruned(target=MACs(0.5), head_dims=True, effort="fast").report.head_dims
    assert list(found.distances).index(found.taken) == int(taken)
    assert bool(found.sizes) == taken
