"""The argument `precision`: products of the statistics in float32."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert

import stat_prune
from stat_prune.errors import SettingsError


def pruned(precision, **options):
    generator = torch.Generator().manual_seed(3)
    rows = [{"input_ids": torch.randint(3, 40, (9,), generator=generator)} for _ in range(64)]
    options = {"target": stat_prune.MACs(0.5), "progress": False} | options
    return stat_prune.prune(tiny_bert(), rows, precision=precision, **options)


def test_products_in_float32_make_the_same_choice_and_nearly_the_same_model():
    one, other = pruned("float64"), pruned("float32")
    assert one.plan == other.plan
    ids = torch.arange(3, 12)[None]
    expected, found = (result.model(input_ids=ids)[0] for result in (one, other))
    assert not torch.equal(found, expected)  # else it was not float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert other.report.settings["precision"] == "float32"


def test_half_precision_is_refused_before_any_work():
    with pytest.raises(SettingsError, match="`precision` must be 'float64' or 'float32'"):
        pruned("bfloat16")
