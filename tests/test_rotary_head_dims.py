"""Dimensions inside the heads of decoders with rotary embeddings and shared keys."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from hand_pruned import assert_costs_what_torch_counts
from isolation import outputs_without_stat_prune
from test_searching import pruned, rows
from tiny_models import SIZES
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.errors import ModelError
from stat_prune.families import find_blocks
from stat_prune.pipeline.inside_heads.measured_dims import head_dims_of
from stat_prune.surgery.narrowing import narrow, narrowed_copy

IDS = torch.stack([row["input_ids"] for row in rows(6, seed=7)])
HEADS, GROUPS, SIZE, WIDTH = 4, 2, 8, 32
COMMON = {
    "vocab_size": 64,
    "pad_token_id": 0,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": SIZE,
    "intermediate_size": 48,
    "initializer_range": 0.25,
    "max_position_embeddings": 64,
}
BIASED = COMMON | {"attention_bias": True}
SLIDING = {
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}


def built(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


MODELS = {
    "Llama": lambda **o: built(LlamaForCausalLM, LlamaConfig(**BIASED | o)),
    "Mistral": lambda: built(MistralForCausalLM, MistralConfig(**COMMON, sliding_window=4)),
    "Qwen2": lambda: built(Qwen2ForCausalLM, Qwen2Config(**COMMON)),
    "Qwen3": lambda: built(Qwen3ForCausalLM, Qwen3Config(**COMMON)),
    "Gemma3": lambda: built(Gemma3ForCausalLM, Gemma3TextConfig(**COMMON, **SLIDING)),
}
#: Norms of each head's queries and keys: values alone lose dimensions.
NORMED = ("Qwen3", "Gemma3")


def head_blocks(model):
    return [block for block in find_blocks(model) if block.kind == "heads"]


def dims_of(model):
    batches = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
    return head_dims_of(model, head_blocks(model), batches, len(IDS))


def narrowed_model(name="Llama", sizes=((4, 3), (8, 6))):
    """A model with so many query/key and value dimensions in each head of its layers."""
    model = MODELS[name]()
    if name in NORMED:
        sizes = [(SIZE, value) for _, value in sizes]
    narrow(model, [one.narrowed(*pair) for one, pair in zip(dims_of(model), sizes, strict=True)])
    return as_pruned_class(model)


@torch.no_grad()
def output(model, ids=IDS, **options):
    return model(input_ids=ids, **options)[0]


def test_all_dimensions_leave_a_model_as_it_is():
    model = MODELS["Llama"]()
    narrow(model, [one.narrowed(SIZE, SIZE) for one in dims_of(model)])
    assert torch.equal(output(model), output(MODELS["Llama"]()))
    assert not hasattr(model.config, "stat_prune")


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_method_computes_what_the_stock_one_does(name):
    """With a direction of no account more or less, as all others then are as before."""
    model = MODELS[name]()
    for layer in model.base_model.layers:
        # The last value dimension of each key/value head is zero.
        values = layer.self_attn.v_proj
        values.weight.data[SIZE - 1 :: SIZE] = 0
        if values.bias is not None:
            values.bias.data[SIZE - 1 :: SIZE] = 0
    mask = torch.ones_like(IDS)
    mask[:3, :2] = 0
    dense = output(model, attention_mask=mask)
    narrow(model, [one.narrowed(SIZE, SIZE - 1) for one in dims_of(model)])
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        found = output(model, attention_mask=mask)[mask.bool()]
        torch.testing.assert_close(found, dense[mask.bool()], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2"])
def test_pairs_that_say_nothing_leave_without_a_trace(name):
    """Other ones of each key/value head."""
    model = MODELS[name]()
    gone = {0: (0, 3), 1: (1, 2)}
    for layer in model.base_model.layers:
        keys = layer.self_attn.k_proj
        for group, pairs in gone.items():
            rows_ = [group * SIZE + pair + half for pair in pairs for half in (0, SIZE // 2)]
            keys.weight.data[rows_] = 0
            if keys.bias is not None:
                keys.bias.data[rows_] = 0
    dense = output(model)
    dims = dims_of(model)
    assert all(float(one.query_key_errors[:, 4].sum()) < 1e-6 for one in dims)
    narrow(model, [one.narrowed(4, SIZE) for one in dims])
    torch.testing.assert_close(output(model), dense, rtol=1e-3, atol=1e-4)
    assert model.config.stat_prune["head_dims"]["layers.0.self_attn"]["pairs"] == [[1, 2], [0, 3]]


def test_values_of_low_rank_lose_nothing():
    """Shared by the heads that read them."""
    model = MODELS["Llama"]()
    for layer in model.base_model.layers:
        values = layer.self_attn.v_proj
        bias = values.bias.data.split(SIZE)
        for head, own in zip(values.weight.data.split(SIZE), bias, strict=True):
            directions = torch.rand(SIZE, 3) - 0.5
            head.copy_(directions @ torch.randn(3, WIDTH))
            own.copy_(directions @ torch.randn(3))
    dense = output(model)
    dims = dims_of(model)
    assert all(
        float(one.value_errors[:, 3].sum()) < 1e-6 < float(one.value_errors[:, 2].sum())
        for one in dims
    )
    narrow(model, [one.narrowed(SIZE, 3) for one in dims])
    torch.testing.assert_close(output(model), dense, rtol=1e-3, atol=1e-4)


def test_values_lose_no_more_than_is_predicted_before_heads_make_up_for_each_other():
    model = MODELS["Llama"](num_key_value_heads=1)
    first = dims_of(model)[0]
    seen = []

    def reads(one):
        layer = one.base_model.layers[0].self_attn.o_proj
        handle = layer.register_forward_hook(lambda *args: seen.append(args[2].double()))
        output(one)
        handle.remove()
        return seen.pop()

    dense, previous = reads(model), 0.0
    for size in (7, 5, 3, 1):
        found = reads(narrowed_copy(model, [], [first.narrowed(SIZE, size)]))
        error = float((found - dense).square().sum() / dense.square().sum())
        assert previous < error <= float(first.value_errors[:, size].sum()) * (1 + 1e-6)
        previous = error


@pytest.mark.parametrize("name", MODELS)
def test_a_narrowed_model_reloads_to_the_bit(name, tmp_path):
    model = narrowed_model(name)
    model.save_pretrained(tmp_path)
    loaded = stat_prune.load(tmp_path)
    assert torch.equal(output(loaded), output(model))
    record = json.loads((tmp_path / "config.json").read_text())["stat_prune"]["head_dims"]
    assert ("pairs" in record["layers.0.self_attn"]) == (name not in NORMED)
    assert "pairs" not in record["layers.1.self_attn"]


def test_narrowed_models_open_without_stat_prune(tmp_path):
    models = [narrowed_model(name) for name in MODELS]
    folders = []
    for name, model in zip(MODELS, models, strict=True):
        model.save_pretrained(tmp_path / name)
        folders.append((tmp_path / name, "AutoModelForCausalLM"))
    found = outputs_without_stat_prune(folders, IDS, tmp_path)
    for one, model in zip(found, models, strict=True):
        assert torch.equal(one, output(model))


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_the_same_with_and_without_a_cache(name):
    model = narrowed_model(name)
    mask = torch.ones_like(IDS)
    mask[:3, :2] = 0
    ids = torch.where(mask.bool(), IDS, 0)
    write = partial(
        model.generate, ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=63
    )
    cached = write(use_cache=True)
    assert torch.equal(cached, write(use_cache=False))
    made_ahead = StaticCache(config=model.config, max_cache_len=64)
    assert torch.equal(cached, write(past_key_values=made_ahead))
    with pytest.raises(ValueError, match="one number of key/value heads, of one size"):
        model.generate_batch(inputs=ids.tolist())


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_what_torch_counts(name):
    assert_costs_what_torch_counts(narrowed_model(name), IDS[:1])


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_a_narrowed_model_is_pruned_again(name, tmp_path):
    model = narrowed_model(name)
    result = pruned(model, target=MACs({"heads": 0.5}), effort="fast")
    first, second = head_blocks(result.model)
    assert first.num_groups + second.num_groups < 2 * GROUPS
    assert (first.query_key_size, first.unit_size) == (SIZE if name in NORMED else 4, 3)
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out")), output(result.model))


def test_heads_take_their_pairs_along():
    """Those of key/value heads that leave are gone; what stays computes as before."""
    model = narrowed_model(sizes=((4, SIZE), (4, SIZE)))
    dense = output(model)
    for layer in model.base_model.layers:
        layer.self_attn.o_proj.weight.data[:, : WIDTH // 2] = 0  # all that the first group says
    alone = output(model)
    assert not torch.allclose(alone, dense)
    before = model.config.stat_prune["head_dims"]["layers.0.self_attn"]["pairs"]
    result = pruned(
        model, target=MACs({"heads": 0.5}), effort="fast", method="magnitude", round_to=1
    )
    after = result.model.config.stat_prune["head_dims"]["layers.0.self_attn"]["pairs"]
    assert after == before[1:]
    torch.testing.assert_close(output(result.model), alone, rtol=1e-3, atol=1e-4)


def test_a_narrowed_model_is_narrowed_again():
    model = narrowed_model(sizes=((6, 6), (6, 6)))
    blocks = head_blocks(model)
    narrow(model, [one.narrowed(2, 4) for one in dims_of(model)])
    pairs = model.config.stat_prune["head_dims"]["layers.0.self_attn"]["pairs"]
    assert [len(one) for one in pairs] == [1, 1]
    assert {(b.query_key_size, b.unit_size) for b in head_blocks(model)} == {(2, 4)}
    assert {(b.query_key_size, b.unit_size) for b in blocks} == {(6, 6)}
    assert output(as_pruned_class(model)).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_a_budget_is_kept(name):
    result = pruned(MODELS[name](), target=MACs(0.5), head_dims=True, effort="fast")
    before, after = result.report.before, result.report.after
    assert after.block_macs <= 0.5 * before.block_macs
    for block in head_blocks(result.model):
        assert block.query_key_size % 2 == 0
        assert name not in NORMED or block.query_key_size == SIZE


def test_families_with_another_attention_are_refused():
    model = built(GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES))
    with pytest.raises(ModelError, match="has neither"):
        pruned(model, head_dims=True)
