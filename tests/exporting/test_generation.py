"""Other ways to generate than greedily, with layers that differ in size."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import build, cut_to, pruned
from inputs import random_batch
from tiny_models import tiny_llama
from transformers.integrations import executorch

from stat_prune.checkpoints.checkpoint import save_checkpoint

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


#: Caches that are made before the first keys: of transformers 5.16 and later, layer by layer.
MADE_AHEAD = {"cache_implementation": "static", "prefill_chunk_size": 4}
needs_layers = pytest.mark.skipif(
    not hasattr(transformers.PreTrainedConfig, "per_layer_config"),
    reason="needs a transformers that reads sizes layer by layer (5.16)",
)


@needs_layers
def test_a_cache_made_ahead_of_the_first_keys_has_the_heads_of_each_layer(reloaded):
    assert torch.equal(written(reloaded, **MADE_AHEAD), written(reloaded))


@pytest.fixture(params=["uneven groups", "three heads", "a layer without heads"])
def uneven(request):
    """Decoders with other numbers of key/value heads in each layer, as pruning leaves them."""
    model = tiny_llama(num_key_value_heads=4, pad_token_id=0, eos_token_id=None)
    kept = {"uneven groups": (2, 1), "three heads": (3, 4), "a layer without heads": (0, 2)}
    return cut_to(model, kept[request.param])


@needs_layers
def test_such_caches_have_the_key_value_heads_that_a_layer_has_left(uneven):
    assert torch.equal(written(uneven, **MADE_AHEAD), written(uneven))
    uneven.generation_config.cache_implementation = "static"
    uneven.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 9, "device": "cpu"}
    exportable = executorch.TorchExportableModuleWithStaticCache(uneven)
    ids = random_batch(1, 1)["input_ids"]
    logits = exportable(input_ids=ids, cache_position=torch.tensor([0]))
    torch.testing.assert_close(logits, uneven(input_ids=ids).logits)


@needs_layers
def test_sizes_of_layers_are_said_in_the_config_and_taken_back_where_all_are_equal(tmp_path):
    model = cut_to(tiny_llama(num_key_value_heads=4, pad_token_id=0), (2, 4))
    assert [one.num_key_value_heads for one in model.config.per_layer_config] == [2, 4]
    assert [one.num_attention_heads for one in model.config.per_layer_config] == [2, 4]
    assert [one.intermediate_size for one in model.config.per_layer_config] == [48, 48]
    equal = cut_to(model, (2, 2))
    assert not {"per_layer_config", "stat_prune"} & equal.config.to_dict().keys()
    save_checkpoint(tmp_path / "out", model=equal)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_reading_one_size_for_all_layers_is_no_cause_for_warnings(reloaded, capfd):
    written(reloaded)
    assert "per-layer attribute" not in capfd.readouterr().err


def test_a_cache_with_one_number_of_heads_for_all_layers_is_refused_and_not_answered_empty(uneven):
    prompts = [random_batch(1, 9)["input_ids"][0].tolist()]
    with pytest.raises(ValueError, match=r"heads, of one size.*ignore='heads'"):
        uneven.generate_batch(inputs=prompts)
