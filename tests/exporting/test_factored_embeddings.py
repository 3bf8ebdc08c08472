"""Factored embeddings and heads, tied or not, in programs that meet models of all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_pruned import build
from inputs import assert_compiles, random_batch
from tiny_models import tiny_llama
from transformers import PreTrainedModel

from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.exporting import export
from stat_prune.surgery.embeddings import (
    decompose_head,
    decompose_table,
    factor,
    factor_own_head,
)

#: The last has a head of its own.
NAMES = ("BertForMaskedLM", "LlamaForCausalLM", "LlamaForCausalLM, untied")


def factored(name: str) -> PreTrainedModel:
    model: PreTrainedModel
    model = tiny_llama(vocab_size=50) if "untied" in name else build(name)
    counts = torch.arange(50.0).double()
    factor(model, decompose_table(model, counts), 0.6)
    if "untied" in name:
        states = torch.eye(model.config.hidden_size, dtype=torch.float64)
        factor_own_head(model, decompose_head(model, counts, states), 0.6)
    return as_pruned_class(model)


@pytest.mark.parametrize("name", NAMES)
def test_torch_exports_them(name: str) -> None:
    model, batch = factored(name), random_batch(2, 12)
    extra = {"use_cache": False} if "Causal" in name else {}
    program = torch.export.export(model, (), kwargs={**batch, **extra})
    # ONNX would have each token compared with all exact rows.
    assert not any("bucketize" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        found = program.module()(**batch, **extra).logits
        torch.testing.assert_close(found, model(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_torch_compiles_them(name: str) -> None:
    # Lookups and matrix products, as in other models.
    assert_compiles(factored(name), random_batch(2, 12), backend="aot_eager")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("name", NAMES[1:])
def test_adapters_go_on_them(name: str) -> None:
    """They are trained beside the factors, and are of more numbers than these can take up."""
    peft = pytest.importorskip("peft", reason="needs peft (the extra `export`)")
    model, batch = factored(name), random_batch(2, 12)
    before = model(**batch).logits.detach()
    config = peft.LoraConfig(target_modules=["embed_tokens", "lm_head"], r=2)
    adapted = peft.get_peft_model(model, config)
    torch.testing.assert_close(adapted(**batch).logits, before)
    adapted(**batch).logits.square().mean().backward()
    trained = [name for name, one in adapted.named_parameters() if one.grad is not None]
    assert any("embed_tokens.lora" in name for name in trained)
    assert any("lm_head.lora" in name for name in trained)
    with pytest.raises(RuntimeError, match="must match"):
        adapted.merge_and_unload()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_adapters_of_other_layers_are_merged() -> None:
    peft = pytest.importorskip("peft", reason="needs peft (the extra `export`)")
    model, batch = factored("LlamaForCausalLM"), random_batch(2, 12)
    config = peft.LoraConfig(target_modules=["down_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        expected = adapted(**batch).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["lm_head"], "use_dora": True},
        {"target_modules": ["down_proj"], "trainable_token_indices": [5, 6]},
    ],
    ids=str,
)
def test_adapters_that_read_the_weight_as_a_whole_table_fail_and_compute_nothing(options) -> None:
    peft = pytest.importorskip("peft", reason="needs peft (the extra `export`)")
    model, batch = factored("LlamaForCausalLM"), random_batch(2, 12)
    with pytest.raises((RuntimeError, AttributeError)):
        peft.get_peft_model(model, peft.LoraConfig(r=2, **options))(**batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.slow
def test_onnx_has_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `onnx`)")
    exporters = pytest.importorskip("transformers.exporters", reason="needs exporters")
    model = factored("BertForMaskedLM")
    export(model, tmp_path / "out", "onnx")
    batch = random_batch(3, 9, seed=1)
    found = dict(exporters.ExportedModel.from_pretrained(tmp_path / "out")(**batch).items())
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_forms_without_a_place_for_them_say_so(to: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="two factors"):
        export(factored(name), tmp_path / "out", to)
