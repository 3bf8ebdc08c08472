"""A folder for mlx-lm computes there what the model does here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from hand_pruned import DECODER, IDS, cut, output
from safetensors.torch import load_file
from tokenizers_at_hand import TEXTS, with_spaces

from stat_prune.errors import SaveError, SettingsError, UnsupportedArchitectureError
from stat_prune.exporting import export

UNEVEN = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen3": {},
    "Qwen3, untied": {"tie_word_embeddings": False},
}


def tiny(name: str, **settings) -> transformers.PreTrainedModel:
    """Layers of different sizes; no norm is the identity."""
    family = name.partition(",")[0]
    config = getattr(transformers, f"{family}Config")(
        **DECODER | {"initializer_range": 0.3, "eos_token_id": 2} | UNEVEN.get(name, {}) | settings
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return cut(model)


@pytest.mark.parametrize("name", UNEVEN)
def test_the_folder_holds_the_weights_and_the_sizes_of_every_layer(name, tmp_path):
    model = tiny(name)
    export(model, tmp_path / "out", "mlx", tokenizer=with_spaces())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "model.safetensors")

    assert config["model_type"] == "openelm"
    assert (config["num_query_heads"], config["num_kv_heads"]) == ([2, 4], [2, 2])
    assert [round(one * 32) for one in config["ffn_multipliers"]] == [33, 48]
    layer, place = model.base_model.layers[0], "transformer.layers.0"
    joined = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
    assert torch.equal(weights[f"{place}.ffn.proj_1.weight"], joined)
    queries = weights[f"{place}.attn.qkv_proj.weight"][:16]
    assert torch.equal(queries, layer.self_attn.q_proj.weight)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert sum(one.numel() for one in weights.values()) == numbers


def test_what_openelm_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match=r"q_proj\.bias.*uniform=True"):
        export(tiny("Qwen2"), tmp_path / "out", "mlx")
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedArchitectureError, match="'linear'"):
        export(tiny("Llama", rope_parameters=linear), tmp_path / "out", "mlx")
    with pytest.raises(SettingsError, match=r"mlx_lm\.convert"):
        export(tiny("Llama"), tmp_path / "out", "mlx", type="q4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(SaveError, match="exists"):
        export(tiny("Llama"), tmp_path / "out", "mlx")


def test_a_window_that_openelm_lacks_is_the_context(tmp_path):
    model = tiny("Mistral", sliding_window=16, max_position_embeddings=64)
    written = export(model, tmp_path / "out", "mlx")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_context_length"] == 16
    assert any("right up to 16 tokens" in note for note in written.notes)
    assert export(tiny("Llama"), tmp_path / "other", "mlx").notes == ()


IN_MLX = """
import json, sys
import mlx.core as mx
from mlx_lm import load
ids, texts = json.loads(sys.argv[1])
answers = {}
for folder in sys.argv[2:]:
    model, tokenizer = load(folder)
    logits = model(mx.array(ids)).tolist()
    answers[folder] = [logits, [tokenizer.encode(text) for text in texts]]
print(json.dumps(answers))
"""


@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="needs mlx-lm (the extra `mlx`)")
def test_mlx_lm_computes_the_same_from_layers_of_different_sizes(tmp_path: Path):
    """In one process for all models, as importing it takes seconds."""
    models = {str(tmp_path / name): tiny(name) for name in UNEVEN}
    for folder, model in models.items():
        export(model, folder, "mlx", tokenizer=with_spaces())
    done = subprocess.run(
        [sys.executable, "-c", IN_MLX, json.dumps([IDS.tolist(), TEXTS]), *models],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    assert answers.keys() == models.keys()
    for folder, (logits, tokens) in answers.items():
        expected = output(models[folder])
        assert float((torch.tensor(logits) - expected).abs().max()) <= 1e-4, folder
        assert tokens == [with_spaces()(text)["input_ids"] for text in TEXTS], folder
