"""The report's figures are those of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, output, reads
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stat_prune import MACs, Parameters
from stat_prune.errors import TargetError
from stat_prune.families import find_blocks
from stat_prune.reporting.report import PruningReport

SEQ_LENGTH = 16
#: Nothing but matrix products of heads, neurons and experts is in their layers.
COUNTED_TO_THE_LAST = ("Llama", "Mixtral", "T5", "T5-gated")
ROUTERS = ("gate", "shared_expert_gate")
#: One each with heads of its own, groups of them, experts, several stacks, and heads that stay.
SEARCHED = ("Bert", "Llama", "Mixtral", "T5", "Olmo2")


@pytest.fixture(scope="session")
def prune(prune_unprobed):
    return prune_unprobed


def counted_macs(model: PreTrainedModel, stacks: Sequence[str], inputs: Any = None) -> float:
    """Multiply-accumulates that torch counts in the transformer layers, for one sequence."""
    ids = torch.arange(2, 2 + SEQ_LENGTH)[None]
    one = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with FlopCounterMode(display=False, depth=None) as counter:
        output(model, one if inputs is None else inputs)
    counts = counter.get_flop_counts()
    flops = {name: sum(by_operation.values()) for name, by_operation in counts.items()}
    layer_names = [f"{type(model).__name__}.{path}.{i}" for path in stacks for i in range(2)]
    # What chooses among experts is no block, and in models this small it is more than 0.5 %.
    routers = sum(flops.get(f"{name}.mlp.{gate}", 0) for name in layer_names for gate in ROUTERS)
    return (sum(flops[name] for name in layer_names) - routers) / 2


@pytest.mark.parametrize("target", [MACs(1.0, seq_length=16), MACs(0.5, seq_length=16)])
def test_reported_macs_are_those_that_torch_counts(family: Family, prune, target):
    # Matrix products that the counter sees.
    result = prune(
        family.build(attn_implementation="eager", experts_implementation="eager"), target
    )
    counted = counted_macs(result.model, family.stacks)
    if "input_ids" in reads(result.model):
        assert result.report.seq_length == SEQ_LENGTH
    tolerance = 0 if family.label in COUNTED_TO_THE_LAST else 0.005
    assert result.report.after.block_macs == pytest.approx(counted, rel=tolerance, abs=0)


def test_reported_parameters_and_bytes_are_those_of_the_model(family: Family, prune):
    model = family.build(family.heads[1], dtype="bfloat16")
    report_of = prune(model, MACs(0.6))
    for size, counted in (
        (report_of.report.before, model),
        (report_of.report.after, report_of.model),
    ):
        number = sum(p.numel() for p in counted.parameters())
        assert size.parameters == number
        assert size.bytes == 2 * number


@pytest.mark.parametrize(
    ("fraction", "budget"),
    [
        (0.8, "unweighted"),
        pytest.param(0.5, "searched", marks=pytest.mark.layouts),
        (0.4, "probed"),
    ],
    ids=str,
)
def test_the_target_is_met_and_nearly_used_up(family: Family, prune, fraction, budget):
    model = family.build()
    for target, measure in ((MACs, "block_macs"), (Parameters, "block_parameters")):
        searched = "normal" if target is MACs and family.label in SEARCHED else "fast"
        spent = {"effort": searched} if budget == "searched" else {"budget": budget}
        report = prune(model, target(fraction), **spent).report
        kept = getattr(report.after, measure) / getattr(report.before, measure)
        # A head of these tiny models is 6 % of the whole, a neuron 0.4 %, 8 of each expert 9 %.
        assert fraction - 0.09 <= kept <= fraction * (1 + 1e-9)


def test_kept_units_are_those_of_the_model_and_of_the_plan(family: Family, prune):
    result = prune(family.build(), MACs(0.5))
    blocks = {block.name: block for block in find_blocks(result.model)}
    for row in result.report.blocks:
        assert row.kept == blocks[row.name].num_units
        assert row.kept_groups == blocks[row.name].num_groups
        if blocks[row.name].fixed:
            assert row.name not in result.plan and row.kept == row.total
        else:
            kept = result.plan[row.name]
            assert len(kept) == row.kept and kept == sorted(set(kept))


@pytest.mark.layouts
def test_the_report_survives_json(family: Family, prune):
    report = prune(family.build(), MACs(0.6)).report
    assert PruningReport.from_dict(json.loads(report.to_json())) == report


@pytest.mark.layouts
def test_a_printed_report_has_every_block_in_80_columns(family: Family, prune):
    report = prune(family.build(), MACs(0.6)).report
    console = Console(width=80, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(report.table())
    shown = capture.get()
    assert max(map(len, shown.splitlines())) <= 80 and "…" not in shown
    cells = re.sub(r"[│\s]+", " ", shown)
    for row in report.blocks:
        assert f" {row.kept}/{row.total} " in cells
        assert re.match(r".*?\.\d+", row.name)[0] in cells


def test_a_target_for_heads_leaves_neurons_alone(family: Family, prune):
    model = family.build()
    reason = next((block.fixed for block in find_blocks(model) if block.fixed), None)
    if reason is not None:
        with pytest.raises(TargetError, match=re.escape(reason)):
            prune(model, Parameters({"heads": 0.5}))
        return
    result = prune(model, Parameters({"heads": 0.5}))
    for row in result.report.blocks:
        assert row.kind == "heads" or row.kept == row.total
    assert any(row.kept < row.total for row in result.report.blocks)


@pytest.mark.layouts
def test_ignored_layers_stay_whole_and_neurons_come_in_multiples(family: Family, prune):
    result = prune(family.build(), MACs(0.75), ignore=[0], round_to=8)
    for row in result.report.blocks:
        assert row.layer > 0 or row.kept == row.total
        assert row.kind == "heads" or row.kept % 8 == 0
    assert any(row.kept < row.total for row in result.report.blocks)


def test_a_printed_report_is_plain_text_in_a_notebook_too(prune, monkeypatch):
    report = prune(FAMILIES[0].build(), MACs(0.6)).report
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    text = str(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert f"{report.after.parameters:,}" in text


def test_a_result_shows_itself_in_one_line(prune):
    result = prune(FAMILIES[0].build(), MACs(0.6))
    assert "\n" not in repr(result) and len(repr(result)) < 200
    assert f"{result.report.after.parameters:,} parameters" in repr(result)
