"""The argument `precision`: products of the statistics in float32."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert

import stat_prune
from stat_prune.errors import SettingsError
from stat_prune.measuring.collectors import collect_moments
from stat_prune.pipeline import loaded_model

IDS = torch.arange(3, 12)[None]


def pruned(precision, model=None, **options):
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(64)]
    options = {"target": stat_prune.MACs(0.5), "progress": False} | options
    return stat_prune.prune(model or tiny_bert(), rows, precision=precision, **options)


def test_products_in_float32_make_the_same_choice_and_nearly_the_same_model():
    one, other = pruned("float64"), pruned("float32")
    assert one.plan == other.plan
    expected, found = (result.model(input_ids=IDS)[0] for result in (one, other))
    assert not torch.equal(found, expected)  # else it was not float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert other.report.settings["precision"] == "float32"


def test_float32_is_the_default_where_no_unit_is_redundant():
    assert pruned("auto").plan == pruned("float32").plan
    default, coarse = (pruned(name).model(input_ids=IDS)[0] for name in ("auto", "float32"))
    assert torch.equal(default, coarse)


def with_duplicates():
    """Neurons of the last layer come in twos, and nothing else does."""
    model = tiny_bert()
    layer = model.encoder.layer[-1]
    with torch.no_grad():
        for tensor in (layer.intermediate.dense.weight, layer.intermediate.dense.bias):
            tensor[1::2] = tensor[::2]
    return model


def test_a_block_that_float32_cannot_judge_is_measured_again_in_float64():
    counted = []

    def spied(model, blocks, batches, *, precision):
        counted.append((precision, [block.name for block in blocks]))
        return collect_moments(model, blocks, batches, precision=precision)

    model = with_duplicates()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model, "collect_moments", spied)
        result = pruned("auto", model=model)
    every = [row.name for row in result.report.blocks]
    assert counted == [("float32", every), ("float64", every[-1:])]


def test_half_precision_is_refused_before_any_work():
    with pytest.raises(SettingsError, match="`precision` must be one of.*'bfloat16'"):
        pruned("bfloat16")
