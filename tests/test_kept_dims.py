"""Fractions of the dimensions inside heads, by themselves or beside those of other kinds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
import typer
from rich.console import Console
from test_head_dims import built, head_blocks, output
from test_searching import MODELS as OTHERS
from test_searching import pruned, rows
from tiny_models import SIZES, tiny_bert, tiny_llama
from transformers import (
    BertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import stat_prune
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.cli.common_options import kept
from stat_prune.errors import ModelError, SettingsError, StatPruneError, TargetError
from stat_prune.families import find_blocks
from stat_prune.pipeline.foreseeing.estimate import estimate
from stat_prune.reporting.block_row import BlockRow
from stat_prune.reporting.layer_table import layer_table
from stat_prune.reporting.recorded_sizes import recorded_sizes
from stat_prune.reporting.report import PruningReport

HEADS, SIZE, LENGTH = 4, 8, 9
MODELS = {"Bert": tiny_bert, "Llama": tiny_llama}


def qwen3():
    sizes = SIZES | {"num_key_value_heads": 2, "head_dim": SIZE}
    return built(Qwen3ForCausalLM, lambda **_: Qwen3Config(**sizes))


def cost_of(kind: str, target, blocks) -> float:
    """What all dimensions of a kind cost: rows of projections, products, columns that are read."""
    total = 0.0
    for block in blocks:
        none = block.with_dims(
            0 if kind == "query-key" else block.query_key_size,
            0 if kind == "value" else block.unit_size,
        )
        cost = target.cost({"attention_mask": LENGTH, "decoder_attention_mask": LENGTH})
        total += cost(block, block.num_units, block.num_groups)
        total -= cost(none, none.num_units, none.num_groups)
    return total


def with_all_dims(blocks):
    """Blocks with as many heads, and all dimensions in each."""
    return [block.with_dims(SIZE, SIZE) for block in blocks]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("kind", ["query-key", "value"])
@pytest.mark.parametrize("make", [MACs, Parameters])
def test_the_fraction_is_kept_but_for_less_than_one_step(name, fraction, kind, make):
    target = make({kind: fraction})
    result = pruned(MODELS[name](), target=target)
    blocks = head_blocks(result.model)
    whole = cost_of(kind, target, with_all_dims(blocks))
    kept = cost_of(kind, target, blocks) / whole
    step = (2 if name == "Llama" and kind == "query-key" else 1) / (SIZE * len(blocks))
    assert fraction - step < kept <= fraction * (1 + 1e-9)
    report = result.report
    assert report.head_dims.kept == {kind: pytest.approx(kept)}
    sizes = {one.name: [one.query_key_size, one.unit_size] for one in blocks}
    assert all(sizes[block] == found for block, found in report.head_dims.sizes.items())
    assert {one.num_units for one in blocks} == {HEADS}
    others = {"query-key": 1, "value": 0}
    assert {sizes[block][others[kind]] for block in sizes} == {SIZE}
    assert PruningReport.from_dict(json.loads(report.to_json())) == report
    assert f"kept {kind} {kept:.4g}" in " ".join(str(report).split())


@pytest.mark.parametrize("name", ["GPT2", "Albert", "T5"])
def test_fused_layers_shared_ones_and_both_sides_of_a_decoder_keep_their_fractions(name):
    target = MACs({"heads": 0.75, "query-key": 0.5, "value": 0.75})
    result = pruned(OTHERS[name](), target=target, effort="fast")
    blocks = head_blocks(result.model)
    for kind, fraction in (("query-key", 0.5), ("value", 0.75)):
        kept = cost_of(kind, target, blocks) / cost_of(kind, target, with_all_dims(blocks))
        assert fraction - 0.13 < kept <= fraction * (1 + 1e-9)
        assert result.report.head_dims.kept[kind] == pytest.approx(kept)
    cross = {"cross_heads"} if name == "T5" else set()
    assert {block.part for block in blocks} == {"heads"} | cross


@pytest.mark.parametrize("name", MODELS)
def test_fractions_of_all_kinds_are_met_together(name, tmp_path):
    model = MODELS[name]()
    target = MACs({"heads": 0.8, "query-key": 0.5, "value": 0.75, "neurons": 0.7})
    result = pruned(model, target=target)
    dense, left = find_blocks(model), find_blocks(result.model)
    assert {block.kind for block in left} == {"heads", "neurons"}
    for kind, fraction in (("heads", 0.8), ("neurons", 0.7)):
        before, after = (
            sum(
                block.macs(block.num_units, block.num_groups, LENGTH)
                for block in blocks
                if block.kind == kind
            )
            for blocks in (
                dense,
                [b.with_dims(SIZE, SIZE) if b.kind == "heads" else b for b in left],
            )
        )
        assert after <= fraction * before * (1 + 1e-9)
    heads = head_blocks(result.model)
    assert sum(block.num_units for block in heads) < HEADS * len(heads)
    for kind, fraction in (("query-key", 0.5), ("value", 0.75)):
        kept = cost_of(kind, target, heads) / cost_of(kind, target, with_all_dims(heads))
        assert fraction - 0.2 < kept <= fraction * (1 + 1e-9)
        assert result.report.head_dims.kept[kind] == pytest.approx(kept)
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Dimensions inside heads: {result.report.head_dims}" in card


def layers_of(report):
    """The cells of each line of the printed table, by heading."""
    lines = [line for line in str(report).splitlines() if line[0] in "│┃"]
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines]
    count = sum(line[0] == "┃" for line in lines)
    headings = ["".join(parts) for parts in zip(*cells[:count], strict=True)]
    return [list(zip(headings, line, strict=True)) for line in cells[count:]]


def test_an_error_is_that_of_the_values_or_none():
    """What other scores do to the output of a block is not measured."""
    narrowed = pruned(target=MACs({"query-key": 0.3, "value": 0.3})).report
    values = pruned(target=MACs({"value": 0.3})).report
    both = pruned(target=MACs({"heads": 0.5, "value": 0.3})).report
    for report in (narrowed, values, both):
        dims = report.head_dims
        for row, line in zip(report.blocks[::2], layers_of(report), strict=True):
            query_key, value = dims.sizes[row.name]
            assert row.query_key_dims == [query_key, SIZE] and row.value_dims == [value, SIZE]
            assert row.activation_error is None
            told = [("querykeydims", f"{query_key}/{SIZE}"), ("valuedims", f"{value}/{SIZE}")]
            assert [(name.replace("-", ""), text) for name, text in line[2:4]] == told
            error = dims.errors[row.name][1]
            assert 0 < error < 1
            if report is narrowed:
                assert row.output_error is None
                assert dims.errors[row.name][0] > 0
                assert [name for name, _ in line[4:]] == ["neurons", "error"]
            else:
                assert row.output_error == error
                assert line[4] == ("error", f"{error:.4f}")
    # Heads that left are part of it.
    assert sum(row.output_error for row in both.blocks) > sum(
        row.output_error for row in values.blocks
    )
    assert narrowed.predicted_distance is values.predicted_distance is None
    assert both.predicted_distance > 0
    assert all(len(line) <= 80 for line in str(both).splitlines())


def test_a_table_of_all_columns_is_80_wide():
    """With the numbers of a Llama of 7 billion parameters whose heads share keys."""
    known = {"layer": 31, "activation_error": None, "output_error": 0.1, "sensitivity": None}
    heads = BlockRow(
        "layers.31.heads",
        "heads",
        kept=30,
        total=32,
        kept_groups=10,
        total_groups=16,
        query_key_dims=[100, 128],
        value_dims=[104, 128],
        **known,
    )
    sizes = dict.fromkeys(("kept", "total", "kept_groups", "total_groups"), 11008)
    neurons = BlockRow("layers.31.neurons", "neurons", **sizes, **known)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(layer_table([heads, neurons]))
    line = capture.get().splitlines()[-2]
    cells = ["layers.31", "30/32", "10/16", "100/128", "104/128", "0.1000", "11008/11008", "0.1000"]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == cells


def test_a_folder_without_a_report_shows_the_dimensions_that_are_left(tmp_path):
    result = pruned(
        tiny_bert(BertForSequenceClassification), target=MACs({"query-key": 0.5, "value": 0.5})
    )
    result.model.save_pretrained(tmp_path)
    found = recorded_sizes(tmp_path)
    rows = [row for row in result.report.blocks if row.kind == "heads"]
    left = [row for row in found.blocks if row.kind == "heads"]
    for row, known in zip(left, rows, strict=True):
        assert row.query_key_dims == known.query_key_dims != [SIZE, SIZE]
        assert row.value_dims == known.value_dims != [SIZE, SIZE]
        assert row.output_error is None
    assert None not in json.loads(json.dumps(found.to_dict()))["blocks"][0].values()


def test_one_run_makes_models_with_dimensions_and_without():
    targets = [MACs({"query-key": 0.5}), MACs({"heads": 0.5}), MACs(0.5)]
    found = stat_prune.prune_family(
        tiny_bert(), rows(72), targets=targets, num_calibration_samples=64, progress=False
    )
    narrowed, *others = found
    alone = pruned(target=targets[0])
    assert torch.equal(output(narrowed.model), output(alone.model))
    assert [one.report.head_dims for one in others] == [None, None]
    assert torch.equal(output(others[1].model), output(pruned(target=MACs(0.5)).model))


def test_embeddings_may_be_factored_beside():
    result = pruned(target=Parameters({"value": 0.5, "embeddings": 0.5}))
    assert result.report.head_dims.kept == {"value": 0.5}
    assert result.report.embeddings.rank < SIZES["hidden_size"]


def test_dimensions_leave_where_least_is_lost():
    model = tiny_bert()
    queries = model.encoder.layer[0].attention.self.query
    queries.bias.data.zero_()
    for head in queries.weight.data.split(SIZE):
        head.copy_((torch.rand(SIZE, 2) - 0.5) @ torch.randn(2, SIZES["hidden_size"]))
    dense = output(model)
    result = pruned(model, target=MACs({"query-key": 10 / 16}))
    first, second = head_blocks(result.model)
    assert (first.query_key_size, second.query_key_size) == (2, SIZE)
    torch.testing.assert_close(output(result.model), dense, rtol=1e-3, atol=1e-4)


def test_layers_that_are_left_alone_count():
    result = pruned(target=MACs({"query-key": 0.75}), ignore=[0])
    first, second = head_blocks(result.model)
    assert (first.query_key_size, second.query_key_size) == (SIZE, SIZE // 2)


def test_dimensions_come_in_multiples():
    result = pruned(target=MACs({"query-key": 0.8, "value": 0.8}), round_to=4)
    sizes = [(one.query_key_size, one.unit_size) for one in head_blocks(result.model)]
    assert sorted(sizes) != [(SIZE, SIZE)] * 2
    assert {size % 4 for pair in sizes for size in pair} == {0}


def test_norms_over_heads_leave_values_alone_to_be_asked_for():
    result = pruned(qwen3(), target=MACs({"value": 0.5}))
    assert {block.query_key_size for block in head_blocks(result.model)} == {SIZE}
    with pytest.raises(ModelError, match=r"'query-key' .* are of 'heads', 'neurons', 'value'\."):
        pruned(qwen3(), target=MACs({"query-key": 0.5}))


@pytest.mark.parametrize("kind", ["query-key", "value"])
def test_other_families_are_refused_with_what_they_offer(kind):
    for model in (built(MPNetModel, MPNetConfig), tiny_bert(is_decoder=True)):
        name = type(model).__name__
        with pytest.raises(
            ModelError, match=rf"{kind}.* leave {name}.*are of 'heads', 'neurons'\."
        ):
            pruned(model, target=MACs({kind: 0.5}))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"query_key": 0.5}, r"'heads', 'neurons', 'query-key' and 'value' to numbers"),
        ({"query-key": 0}, r"must lie in \(0, 1\]"),
        ({"query-key": 50}, r"Did you mean"),
        ({"query-key": 0.05}, r"0\.125 is the least"),
        ({"heads": 0.5, "value": 0.1}, r"0\.125 is the least"),
    ],
)
def test_bad_fractions_are_refused(fractions, message):
    with pytest.raises(TargetError, match=message):
        pruned(target=MACs(fractions))


def test_what_leaves_no_dimension_is_refused_with_pairs_multiples_and_layers_left_alone():
    for model, options, least in (
        (tiny_llama(), {}, "0.25"),
        (tiny_bert(), {"round_to": 4}, "0.5"),
        (tiny_bert(), {"ignore": [1]}, "0.5625"),
    ):
        with pytest.raises(TargetError, match=f"{least} is the least"):
            pruned(model, target=MACs({"query-key": 0.2}), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"uniform": True}, SettingsError, "uniform=True"),
        ({"serve_with": "mlx"}, SettingsError, "serve_with='mlx'"),
        ({"method": "kprune"}, SettingsError, "method='kprune'"),
        ({"ignore": "heads"}, TargetError, "no heads to narrow"),
        ({"ignore": "haeds"}, TargetError, "matches no block"),
        ({"head_dims": True}, TargetError, "one fraction"),
    ],
)
def test_what_has_no_place_for_dimensions_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        pruned(target=MACs({"query-key": 0.5}), **options)


def test_other_targets_say_who_takes_dimensions():
    with pytest.raises(TargetError, match=r"Dimensions inside heads take MACs\("):
        Tolerance({"query-key": 0.1, "value": 0.1})


def test_layer_by_layer_refuses(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "dense")
    with pytest.raises(TargetError, match=r"chosen on the whole model\. .* stat_prune.prune"):
        stat_prune.prune_checkpoint(
            tmp_path / "dense",
            rows(8),
            target=MACs({"query-key": 0.5}),
            output_dir=tmp_path / "out",
            progress=False,
        )


@pytest.mark.parametrize(
    "target",
    [
        MACs({"query-key": 0.5}),
        Parameters({"value": 0.5}),
        MACs({"heads": 0.5, "query-key": 0.5, "neurons": 0.75}),
    ],
)
def test_sizes_are_foreseen(target):
    model = tiny_bert()
    config = model.config
    config.architectures = ["BertModel"]
    found = estimate(config, target=replace(target), seq_length=LENGTH, num_calibration_samples=64)
    after = pruned(model, target=target).report.after
    assert found.before.parameters == sum(p.numel() for p in model.parameters())
    assert found.after.block_macs == pytest.approx(after.block_macs, rel=0.02)
    assert found.after.parameters == pytest.approx(after.parameters, rel=0.02)
    assert found.memory_by_layer is None
    assert min(found.seconds.values()) >= 0
    with pytest.raises(StatPruneError, match="is the least"):
        estimate(config, target=MACs({"query-key": 0.01}))


def test_what_is_asked_for_in_a_shell():
    assert kept("0.6") == 0.6
    assert kept("query-key=0.5") == {"query-key": 0.5}
    assert kept("heads=0.8, query-key=0.5") == {"heads": 0.8, "query-key": 0.5}
    for text in ("half", "heads=half", "heads=0.5,0.6"):
        with pytest.raises(typer.BadParameter, match="neither a number"):
            kept(text)
    with pytest.raises(typer.BadParameter, match="twice"):
        kept("heads=0.8,heads=0.5")
