"""A pruned model goes through torch's compiler and exporter like any other."""

from __future__ import annotations

import pytest
from hand_pruned import pruned
from inputs import assert_compiles, assert_exports

MODELS = ("BertForSequenceClassification", "LlamaForCausalLM")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_a_compiled_model_gives_the_same_outputs(name):
    assert_compiles(pruned(name))


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_gives_the_same_outputs_for_other_shapes(name):
    assert_exports(pruned(name), name, rtol=1e-5, atol=1e-6)
