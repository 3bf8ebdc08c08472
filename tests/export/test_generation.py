"""Other ways to generate than greedily, with layers that differ in size."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import build, pruned
from inputs import random_batch

from stat_prune.checkpoint import save_checkpoint

DECODERS = ("LlamaForCausalLM", "Qwen3ForCausalLM")


@pytest.fixture(params=DECODERS)
def reloaded(request, tmp_path):
    """A pruned decoder as people load it."""
    save_checkpoint(tmp_path / "out", model=pruned(request.param))
    return transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )


def written(model, size: int = 2, **settings) -> torch.Tensor:
    batch = {"input_ids": random_batch(size, 9)["input_ids"]}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return model.generate(
        **batch, **{"max_new_tokens": 7, "do_sample": False, "eos_token_id": None} | settings
    )


def test_a_static_cache_writes_what_a_growing_one_writes(reloaded):
    assert torch.equal(written(reloaded, cache_implementation="static"), written(reloaded))


def test_beams_with_a_cache_are_those_without(reloaded):
    assert torch.equal(
        written(reloaded, num_beams=3), written(reloaded, num_beams=3, use_cache=False)
    )


@pytest.mark.parametrize("role", ["assistant", "assisted"])
def test_a_pruned_and_a_dense_model_assist_each_other(reloaded, role):
    dense = build(type(reloaded).__name__)
    model, assistant = (dense, reloaded) if role == "assistant" else (reloaded, dense)
    found = written(model, size=1, assistant_model=assistant)
    assert torch.equal(found, written(model, size=1))
