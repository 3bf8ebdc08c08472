"""GGUF files hold the pruned model, and llama.cpp computes what transformers does from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hand_pruned import DECODER, IDS, cut, output
from tokenizers_at_hand import TEXTS, byte_level, with_spaces

from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.errors import ModelError, SaveError, SettingsError, UnsupportedArchitectureError
from stat_prune.exporting import export
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

gguf = pytest.importorskip("gguf", reason="needs gguf (the extra `gguf`)")
from stat_prune.exporting.gguf_tokenizer import PRE_TOKENIZERS  # noqa: E402

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
DECI = {
    "Llama": ("Llama", {}),
    "Llama, untied, with biases": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "Llama, positions as in Llama 3": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "Llama, positions closer together": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "Mistral": ("Mistral", {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
}
OPENELM = {
    "Qwen3": ("Qwen3", {}),
    "Qwen3, positions closer together": ("Qwen3", {"rope_parameters": LINEAR_ROPE}),
}
UNEVEN = DECI | OPENELM
EVEN = {name: UNEVEN[name] for name in ("Llama", "Mistral", "Qwen2")} | {
    "Qwen3, untied": ("Qwen3", {"tie_word_embeddings": False})
}


def tiny(family: str, settings: dict, *, seed: int = 0) -> transformers.PreTrainedModel:
    """A dense one; no weight is zero, biases and norms included."""
    config = getattr(transformers, f"{family}Config")(
        **DECODER | {"initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2} | settings
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def without(model: transformers.PreTrainedModel, layer: int, kind: str) -> None:
    """All of a block leaves, and something stays in the bias of its consumer."""
    (block,) = (b for b in find_blocks(model) if b.layer == layer and b.kind == kind)
    weight = projection(model.base_model, block.consumer).weight.double()
    bias = torch.linspace(-1, 1, len(weight)).double()
    units = torch.arange(0)
    apply(model, [FoldedConsumer(block, units, weight[:, :0], bias, 0.0)])
    as_pruned_class(model)


def written(model: transformers.PreTrainedModel, folder: Path, **options) -> Path:
    path = folder / "model.gguf"
    export(model, path, "gguf", tokenizer=options.pop("tokenizer", with_spaces()), **options)
    return path


def field(reader: gguf.GGUFReader, name: str):
    """The contents of a field, whose name begins with that of the architecture or not."""
    found = reader.fields.get(name) or reader.fields[f"{field(reader, ARCHITECTURE)}.{name}"]
    return found.contents()


ARCHITECTURE = "general.architecture"


def values(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}


def turned(rows: torch.Tensor, head_size: int) -> np.ndarray:
    """Channel i and i + head_size / 2 of each head side by side: llama.cpp's rotation."""
    order = [
        head * head_size + i + half
        for head in range(len(rows) // head_size)
        for i in range(head_size // 2)
        for half in (0, head_size // 2)
    ]
    return rows[order].numpy()


@pytest.mark.parametrize("name", UNEVEN)
def test_the_file_holds_every_weight_and_the_sizes_of_every_layer(name, tmp_path):
    model = cut(tiny(*UNEVEN[name]))
    reader = gguf.GGUFReader(written(model, tmp_path))
    found, base = values(reader), model.base_model

    deci = name in DECI
    assert field(reader, ARCHITECTURE) == ("deci" if deci else "openelm")
    assert field(reader, "attention.head_count") == [2, 4]
    assert field(reader, "attention.head_count_kv") == [2, 2]
    assert field(reader, "feed_forward_length") == [33, 48]
    assert field(reader, "attention.key_length") == field(reader, "attention.value_length") == 8
    assert field(reader, "rope.dimension_count") == 8
    assert field(reader, "rope.freq_base") == 10000
    assert field(reader, "context_length") == 40
    assert field(reader, "attention.layer_norm_rms_epsilon") == pytest.approx(
        model.config.rms_norm_eps
    )

    expected = {
        "token_embd.weight": base.embed_tokens.weight,
        "output_norm.weight": base.norm.weight,
    }
    if not model.config.tie_word_embeddings:
        expected["output.weight"] = model.lm_head.weight
    names = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for i, layer in enumerate(base.layers):
        attention = layer.self_attn
        expected[f"blk.{i}.attn_norm.weight"] = layer.input_layernorm.weight
        expected[f"blk.{i}.ffn_norm.weight"] = layer.post_attention_layernorm.weight
        for part, value in layer.mlp.named_parameters():
            module, _, kind = part.partition(".")
            expected[f"blk.{i}.{names[module]}.{kind}"] = value
        for part, value in attention.o_proj.named_parameters():
            expected[f"blk.{i}.attn_output.{part}"] = value
        if deci:
            for part in ("q", "k"):
                for kind, value in getattr(attention, f"{part}_proj").named_parameters():
                    expected[f"blk.{i}.attn_{part}.{kind}"] = turned(value.detach(), 8)
            for kind, value in attention.v_proj.named_parameters():
                expected[f"blk.{i}.attn_v.{kind}"] = value
        else:
            three = (attention.q_proj, attention.k_proj, attention.v_proj)
            expected[f"blk.{i}.attn_qkv.weight"] = torch.cat([one.weight for one in three])
            expected[f"blk.{i}.attn_q_norm.weight"] = attention.q_norm.weight
            expected[f"blk.{i}.attn_k_norm.weight"] = attention.k_norm.weight
    factors = found.pop("rope_freqs.weight", None)
    assert (factors is not None) == ("Llama 3" in name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        value = value if isinstance(value, np.ndarray) else value.detach().numpy()
        assert np.array_equal(found[key], value), key


@pytest.mark.parametrize("name", EVEN)
def test_layers_of_one_size_are_written_under_their_own_architecture(name, tmp_path):
    family, settings = EVEN[name]
    model = tiny(family, settings)
    cut(model, layer=0, kinds=("neurons",))
    cut(model, layer=1, kinds=("neurons",))
    assert not hasattr(model.config, "stat_prune")
    reader = gguf.GGUFReader(written(model, tmp_path))

    architecture = "llama" if family == "Mistral" else family.lower()
    assert field(reader, ARCHITECTURE) == architecture
    assert field(reader, "feed_forward_length") == 33
    query = model.base_model.layers[0].self_attn.q_proj.weight.detach()
    expected = turned(query, 8) if architecture == "llama" else query.numpy()
    assert np.array_equal(values(reader)["blk.0.attn_q.weight"], expected)


def test_what_a_layer_has_lost_is_a_head_and_a_neuron_of_zeros(tmp_path):
    model = tiny("Llama", {})
    without(model, 0, "heads")
    without(model, 1, "neurons")
    reader = gguf.GGUFReader(written(model, tmp_path))
    found = values(reader)

    assert field(reader, "attention.head_count") == [1, 4]
    assert field(reader, "attention.head_count_kv") == [1, 2]
    assert field(reader, "feed_forward_length") == [48, 1]
    assert not found["blk.0.attn_output.weight"].any()
    assert not found["blk.1.ffn_down.weight"].any()
    bias = model.base_model.layers[0].self_attn.o_proj.bias.detach().numpy()
    assert np.array_equal(found["blk.0.attn_output.bias"], bias)


@pytest.mark.parametrize(
    ("type", "step"), [("f16", 2.0**-11), ("bf16", 2.0**-8), ("q8_0", 1 / 127)]
)
def test_other_types_round_matrices_and_leave_vectors_alone(type, step, tmp_path):
    model = cut(tiny("Llama", {}))
    exact = values(gguf.GGUFReader(written(model, tmp_path, pad_to=32)))
    (tmp_path / "rounded").mkdir()
    reader = gguf.GGUFReader(written(model, tmp_path / "rounded", type=type, pad_to=32))

    assert {t.tensor_type.name for t in reader.tensors if len(t.shape) == 2} == (
        {"Q8_0", "F16"} if type == "q8_0" else {type.upper()}
    )
    for name, value in values(reader).items():
        change = np.abs(value - exact[name]).max()
        assert change <= (step * np.abs(exact[name]).max() if value.ndim == 2 else 0), name


def test_rows_that_are_filled_up_or_kept_in_16_bits_are_said(tmp_path):
    model = cut(tiny("Llama", {}))
    exported = export(model, tmp_path / "a.gguf", "gguf", tokenizer=with_spaces(), type="q8_0")
    assert field(gguf.GGUFReader(exported.path), "feed_forward_length") == [64, 64]
    assert exported.notes[:2] == (
        "layers.0: 31 neurons of zeros make 64",
        "layers.1: 16 neurons of zeros make 64",
    )
    assert "no tokens for single bytes" in exported.notes[2]
    assert exported.notes[3:] == (
        "1 matrices are in f16, as their rows are no multiples of 32: blk.0.attn_output.weight",
    )
    plain = export(model, tmp_path / "b.gguf", "gguf", tokenizer=byte_level())
    assert plain.notes == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: cut(tiny("Qwen3", {"tie_word_embeddings": False})), "tie_word_embeddings"),
        (lambda: cut(tiny("Qwen3", {"attention_bias": True})), "remove_blocks"),
        (lambda: cut(tiny("Llama", {"hidden_act": "gelu"})), "gelu"),
        (
            lambda: cut(tiny("Llama", {"rope_parameters": LINEAR_ROPE | {"rope_type": "dynamic"}})),
            "dynamic",
        ),
        (lambda: cut(tiny("Phi3", {"pad_token_id": 0})), "uniform=True"),
        (lambda: cut(tiny("Llama", {})).base_model, "language model head"),
    ],
    ids=["untied Qwen3", "biased Qwen3", "GELU", "rope that grows", "another family", "no head"],
)
def test_what_llama_cpp_cannot_hold_is_refused_before_anything_is_written(
    change, message, tmp_path
):
    with pytest.raises(UnsupportedArchitectureError, match=message):
        written(change(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_factored_matrix_is_refused_by_name(tmp_path):
    model = tiny("Llama", {})
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(
        torch.nn.Linear(32, 4, bias=False), torch.nn.Linear(4, 48, bias=False)
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"layers\.1\.mlp\.up_proj"):
        written(model, tmp_path)


def test_what_cannot_be_asked_for_is_refused_with_what_can(tmp_path):
    model = cut(tiny("Llama", {}))
    with pytest.raises(SettingsError, match="llama-quantize IN OUT Q4_K_M"):
        written(model, tmp_path, type="q4_k_m")
    with pytest.raises(SettingsError, match="pass tokenizer=|Pass tokenizer="):
        written(model, tmp_path, tokenizer=None)
    with pytest.raises(SettingsError, match="'bits' is no option of to='gguf'"):
        written(model, tmp_path, bits=4)
    with pytest.raises(SettingsError, match="none of gguf, mlx, onnx, openvino, transformers"):
        export(model, tmp_path / "x", "ggml")
    path = written(model, tmp_path)
    before = path.read_bytes()
    with pytest.raises(SaveError, match="overwrite=True"):
        written(model, tmp_path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["model.gguf"]


def test_tokens_scores_and_special_tokens_of_a_tokenizer_with_spaces(tmp_path):
    reader = gguf.GGUFReader(written(cut(tiny("Llama", {})), tmp_path))
    tokenizer = with_spaces()
    tokens = field(reader, "tokenizer.ggml.tokens")
    kinds = field(reader, "tokenizer.ggml.token_type")
    scores = dict(zip(tokens, field(reader, "tokenizer.ggml.scores"), strict=True))

    assert field(reader, "tokenizer.ggml.model") == "llama"
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 50
    assert kinds[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert kinds[tokens.index("<|user|>")] == gguf.TokenType.USER_DEFINED
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    order = ["".join(merge) for merge in merges]
    assert sorted(order, key=scores.get, reverse=True) == order
    assert field(reader, "tokenizer.ggml.bos_token_id") == 1
    assert field(reader, "tokenizer.ggml.eos_token_id") == 2
    assert field(reader, "tokenizer.ggml.add_bos_token") is True
    assert field(reader, "tokenizer.ggml.add_space_prefix") is True
    assert field(reader, "tokenizer.chat_template") == tokenizer.chat_template


@pytest.mark.parametrize(
    ("expression", "name"), [(None, "gpt-2"), *PRE_TOKENIZERS.items()], ids=str
)
def test_merges_and_the_splitting_of_a_byte_level_tokenizer(expression, name, tmp_path):
    tokenizer = byte_level(expression)
    reader = gguf.GGUFReader(written(cut(tiny("Qwen2", {})), tmp_path, tokenizer=tokenizer))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert field(reader, "tokenizer.ggml.model") == "gpt2"
    assert field(reader, "tokenizer.ggml.pre") == name
    assert field(reader, "tokenizer.ggml.merges") == [" ".join(merge) for merge in merges]


def test_a_splitting_without_a_name_is_asked_for(tmp_path, word_tokenizer):
    model, odd = cut(tiny("Qwen2", {})), byte_level(r"\w+|\W+")
    with pytest.raises(ModelError, match="pre_tokenizer="):
        written(model, tmp_path, tokenizer=odd)
    reader = gguf.GGUFReader(written(model, tmp_path, tokenizer=odd, pre_tokenizer="refact"))
    assert field(reader, "tokenizer.ggml.pre") == "refact"
    with pytest.raises(ModelError, match="WordLevel"):
        written(model, tmp_path, tokenizer=word_tokenizer, overwrite=True)


# What llama.cpp makes of the files. It stops the process where it does not like one.
IN_LLAMA_CPP = """
import json, sys
from pathlib import Path
from llama_server import serving
ids, texts = json.loads(sys.argv[2])
with serving(Path(sys.argv[1]), 64) as server:
    found = [server.log_probabilities(one) for one in ids]
    tokens = [server.tokenize(text) for text in texts]
    print(json.dumps([found, tokens]))
"""
needs_llama_cpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None,
    reason="needs a llama.cpp (pip install xllamacpp, the extra `llama-cpp`)",
)


def in_llama_cpp(path: Path, texts: list[str]) -> tuple[list[list[float]], list[list[int]]]:
    done = subprocess.run(
        [sys.executable, "-c", IN_LLAMA_CPP, str(path), json.dumps([IDS.tolist(), texts])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "benchmarks")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    probabilities, tokens = json.loads(done.stdout)
    return probabilities, tokens


def assert_same_in_llama_cpp(model, path: Path, tokenizer, tolerance: float = 1e-4) -> None:
    found, tokens = in_llama_cpp(path, TEXTS)
    expected = output(model).log_softmax(-1)[:, :-1].gather(2, IDS[:, 1:, None])[..., 0]
    assert float((torch.tensor(found) - expected).abs().max()) <= tolerance
    assert tokens == [tokenizer(text)["input_ids"] for text in TEXTS]


@needs_llama_cpp
@pytest.mark.parametrize("name", UNEVEN)
def test_llama_cpp_computes_the_same_from_layers_of_different_sizes(name, tmp_path):
    model = cut(tiny(*UNEVEN[name]))
    assert_same_in_llama_cpp(model, written(model, tmp_path), with_spaces())


@needs_llama_cpp
@pytest.mark.parametrize("name", EVEN)
def test_llama_cpp_computes_the_same_from_layers_of_one_size(name, tmp_path):
    model = tiny(*EVEN[name])
    path = written(model, tmp_path, tokenizer=byte_level())
    assert_same_in_llama_cpp(model, path, byte_level())


@needs_llama_cpp
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_llama_cpp_computes_the_same_without_some_blocks(family, tmp_path):
    model = tiny(family, {})
    without(model, 0, "heads")
    without(model, 1, "neurons")
    assert_same_in_llama_cpp(model, written(model, tmp_path), with_spaces())


@needs_llama_cpp
def test_neurons_of_zeros_change_nothing_in_llama_cpp(tmp_path):
    model = cut(tiny("Llama", {}))
    assert_same_in_llama_cpp(model, written(model, tmp_path, pad_to=256), with_spaces())
