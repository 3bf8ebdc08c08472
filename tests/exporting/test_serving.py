"""What a result is meant to be served with restricts it, or is refused before any work."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny_models import tiny_bert, tiny_llama

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.errors import StatPruneError, UniformSizesWarning

IDENTIFIERS = torch.randint(0, 64, (40, 20), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": ids} for ids in IDENTIFIERS]
FAST = {"effort": "fast", "progress": False}


def test_for_llama_cpp_neurons_are_kept_in_multiples_of_its_rows():
    model = tiny_llama(intermediate_size=256)
    settings = {"target": Parameters({"neurons": 0.6}), "round_to": 3, **FAST}
    free = stat_prune.prune(model, DATA, **settings)
    result = stat_prune.prune(model, DATA, serve_with="llama.cpp", **settings)
    assert all(row.kept % 96 == 0 for row in result.report.blocks if row.kind == "neurons")
    assert any(row.kept % 32 for row in free.report.blocks if row.kind == "neurons")
    assert result.report.settings["serve_with"] == "llama.cpp"


def test_for_vllm_numbers_of_heads_are_such_as_the_config_says():
    settings = {"target": MACs({"heads": 0.75}), "budget": "even", **FAST}
    model = tiny_llama(num_key_value_heads=4)
    free = stat_prune.prune(model, DATA, **settings)
    assert {row.kept for row in free.report.blocks if row.kind == "heads"} == {3}
    with pytest.warns(UniformSizesWarning, match="serve_with='vllm': a LlamaConfig refuses"):
        result = stat_prune.prune(model, DATA, serve_with="vllm", **settings)
    assert all(row.kept in (1, 2, 4) for row in result.report.blocks if row.kind == "heads")
    fields = result.model.config.to_dict()["per_layer_config"].values()
    assert all("num_attention_heads" in one for one in fields)


class Unread:
    """Data that no one may look at."""

    def __len__(self) -> int:
        raise AssertionError("the data was read")


def tiny(family: str, **config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 64}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 48}
    made = getattr(transformers, f"{family}Config")(**sizes | config)
    return getattr(transformers, f"{family}ForCausalLM")(made)


def tiny_albert():
    sizes = {"embedding_size": 16, "hidden_size": 32, "num_attention_heads": 4}
    return transformers.AlbertModel(transformers.AlbertConfig(**sizes, intermediate_size=48))


def tiny_t5():
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("program", "make", "how", "message"),
    [
        ("llama.cpp", tiny_bert, {}, "'bert' cannot be written for llama.cpp.*uniform=True"),
        ("llama.cpp", lambda: tiny("Qwen3", tie_word_embeddings=False), {}, "uniform=True"),
        (
            "llama.cpp",
            lambda: tiny("Qwen3", tie_word_embeddings=True),
            {"remove_blocks": True},
            "Leave remove_blocks out",
        ),
        ("llama.cpp", tiny_llama, {"target": Parameters(0.8, embeddings=0.5)}, "two factors"),
        ("mlx", lambda: tiny("Qwen2"), {}, "without biases .*uniform=True"),
        ("mlx", tiny_llama, {"remove_blocks": True}, "Leave remove_blocks out"),
        ("vllm", tiny_albert, {}, "AlbertModel is none. Serve it with transf"),
        ("vllm", lambda: tiny("Falcon"), {}, "Prune neurons alone"),
        ("onnx", tiny_t5, {}, "not one stack of layers"),
        ("ollama", tiny_llama, {}, "`serve_with` must be one of llama.cpp, mlx, vllm"),
    ],
)
def test_what_a_program_cannot_hold_is_refused_before_the_data_is_read(program, make, how, message):
    with pytest.raises(StatPruneError, match=message):
        stat_prune.prune(make(), Unread(), **{"target": Parameters(0.8), **how}, serve_with=program)


def test_removed_blocks_are_left_to_llama_cpp_where_an_architecture_holds_them():
    settings = {"serve_with": "llama.cpp", "remove_blocks": True, **FAST}
    result = stat_prune.prune(tiny_llama(), DATA, target=Parameters(0.4), **settings)
    assert 0 in [row.kept for row in result.report.blocks]
