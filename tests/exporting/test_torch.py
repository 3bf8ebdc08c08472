"""A pruned model goes through torch's compiler and exporter like any other."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import pruned
from inputs import random_batch

MODELS = ("BertForSequenceClassification", "LlamaForCausalLM")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_a_compiled_model_gives_the_same_outputs(name):
    model = pruned(name)
    compiled = torch.compile(model)
    batch = random_batch(3, 11)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_gives_the_same_outputs_for_other_shapes(name):
    model = pruned(name)
    batch = random_batch(2, 12)
    dimensions = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=40)}
    program = torch.export.export(
        model,
        (),
        kwargs={**batch, "use_cache": False} if "Causal" in name else batch,
        dynamic_shapes={**dict.fromkeys(batch, dimensions)}
        | ({"use_cache": None} if "Causal" in name else {}),
    )
    other = random_batch(3, 9, seed=1)
    extra = {"use_cache": False} if "Causal" in name else {}
    with torch.no_grad():
        found = program.module()(**other, **extra).logits
        torch.testing.assert_close(found, model(**other).logits, rtol=1e-5, atol=1e-6)
