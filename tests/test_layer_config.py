"""A layer that reads its size from the model's config has one of its own, and follows the rest."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hand_pruned import IDS, cut, output
from tiny_models import SIZES
from transformers import Phi3Config, Phi3ForCausalLM

from stat_prune.model.modeling_stat_prune import LayerConfig


@pytest.fixture
def model() -> Phi3ForCausalLM:
    """Of which layer 0 keeps two of four heads."""
    torch.manual_seed(0)
    return cut(Phi3ForCausalLM(Phi3Config(**SIZES, pad_token_id=0)).eval())


def heads(model) -> list[int]:
    return [layer.self_attn.config.num_attention_heads for layer in model.model.layers]


def test_only_the_size_is_the_layers_own(model):
    assert heads(model) == [2, 4] and model.config.num_attention_heads == 4
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.config, LayerConfig)
    assert attention.config.rms_norm_eps == model.config.rms_norm_eps
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = attention.config.no_such_field
    before = output(model)
    model.set_attn_implementation("eager")
    assert attention.config._attn_implementation == "eager"
    torch.testing.assert_close(output(model), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_follow_the_config_of_the_copy(model, duplicate):
    again = duplicate(model)
    again.config.sliding_window = 3
    attention = again.model.layers[0].self_attn
    assert heads(again) == [2, 4] and attention.config.sliding_window == 3
    assert model.model.layers[0].self_attn.config.sliding_window != 3
    again.config.sliding_window = model.config.sliding_window
    assert torch.equal(again(input_ids=IDS)[0], output(model))


def test_a_layer_that_is_cut_again_still_follows_the_model(model):
    smaller = cut(copy.deepcopy(model), layer=1)
    assert heads(smaller) == [2, 2]
    smaller.config.rms_norm_eps = 0.5
    assert all(layer.self_attn.config.rms_norm_eps == 0.5 for layer in smaller.model.layers)
