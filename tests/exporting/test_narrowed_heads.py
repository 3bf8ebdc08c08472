"""Models whose heads have lost dimensions run wherever pruned models do, or are refused."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import build, output
from inputs import assert_compiles, assert_exports, in_onnxruntime, random_batch

import stat_prune
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.exporting import export
from stat_prune.families import find_blocks
from stat_prune.pipeline.inside_heads.measured_dims import head_dims_of
from stat_prune.surgery.narrowing import narrow

MODELS = (
    "BertForSequenceClassification",
    "LlamaForCausalLM",
    "Qwen3ForCausalLM",
    "GPT2LMHeadModel",
)
SIZES = {
    "BertForSequenceClassification": ((5, 3), (8, 6)),
    "LlamaForCausalLM": ((4, 3), (6, 8)),
    "Qwen3ForCausalLM": ((8, 3), (8, 6)),
    "GPT2LMHeadModel": ((5, 3), (8, 6)),
}
TARGETS = {"Bert": ["query", "value"], "GPT2": ["c_attn"]}


def narrowed(name):
    """In its first layer queries and keys, or values, and in its second."""
    model = build(name)
    blocks = [block for block in find_blocks(model) if block.kind == "heads"]
    dims = head_dims_of(model, blocks, [random_batch(16, 20)], 16)
    narrow(model, [one.narrowed(*size) for one, size in zip(dims, SIZES[name], strict=True)])
    return as_pruned_class(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "inductor" if "Llama" in name else "aot_eager") for name in MODELS],
)
def test_a_compiled_model_gives_the_same_outputs(name, backend):
    assert_compiles(narrowed(name), backend=backend)


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_gives_the_same_outputs_for_other_shapes(name):
    assert_exports(narrowed(name), name, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:copyreg")
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_onnxruntime_gives_the_same_outputs(name, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    model, other = narrowed(name), random_batch(3, 9, seed=1)
    _, found = in_onnxruntime(model, name, tmp_path, other)
    with torch.no_grad():
        torch.testing.assert_close(found, model(**other)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_lora_trains_reloads_and_merges(name, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft (the extra `export`)")
    model = narrowed(name)
    before = output(model)
    save_checkpoint(tmp_path / "model", model=model)
    targets = TARGETS.get(name[:4], ["q_proj", "v_proj"])
    config = peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted(**random_batch(4, 9)).logits.square().mean().backward()
    parameters = [one for one in adapted.parameters() if one.requires_grad]
    assert all(one.grad is not None for one in parameters)
    torch.optim.SGD(parameters, lr=0.01).step()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = output(adapted.eval())
    assert not torch.allclose(expected, before, rtol=1e-2)
    loaded = stat_prune.load(tmp_path / "model")
    again = peft.PeftModel.from_pretrained(loaded, tmp_path / "adapter")
    torch.testing.assert_close(output(again.eval()), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output(again.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["gguf", "mlx"])
def test_programs_with_one_size_of_heads_are_refused(to, tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match="lost dimensions"):
        export(narrowed("LlamaForCausalLM"), tmp_path / "out", to, tokenizer=None)


def test_plain_transformers_are_refused(tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match="trust_remote_code"):
        export(narrowed("LlamaForCausalLM"), tmp_path / "out", "transformers", tokenizer=None)
