"""Adapters on a pruned model: trained, saved, put on the reloaded model and merged."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import output, pruned
from inputs import random_batch
from tiny_models import tiny_llama

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import save_checkpoint

peft = pytest.importorskip("peft", reason="needs peft (the extra `export`)")

TARGETS = {
    "BertForSequenceClassification": ["query", "value", "intermediate.dense"],
    "LlamaForCausalLM": ["q_proj", "v_proj", "down_proj"],
}


# Of peft 0.21 itself.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_lora_trains_saves_reloads_and_merges(name, tmp_path):
    model = pruned(name)
    dense_output = output(model)
    save_checkpoint(tmp_path / "model", model=model)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=TARGETS[name], r=2, init_lora_weights=False)
    )
    loss = adapted(**random_batch(4, 9)).logits.square().mean()
    loss.backward()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    optimizer.step()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = output(adapted.eval())
    assert (expected - dense_output).abs().max() > 1e-3

    again = peft.PeftModel.from_pretrained(
        stat_prune.load(tmp_path / "model"), tmp_path / "adapter"
    )
    torch.testing.assert_close(output(again.eval()), expected, rtol=1e-6, atol=1e-6)
    merged = again.merge_and_unload()
    torch.testing.assert_close(output(merged), expected, rtol=1e-4, atol=1e-5)
    assert type(merged).__name__ == name


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_names_the_pruned_model_as_its_base(tmp_path):
    """With neurons pruned alone, all shapes of the adapter would fit the dense model."""
    tiny_llama().save_pretrained(tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    data = [{"input_ids": ids} for ids in torch.randint(0, 64, (60, 20))]
    target = MACs({"neurons": 0.5})
    result = stat_prune.prune(dense, data, target=target, progress=False)
    result.save(tmp_path / "out")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(result.model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter", trust_remote_code=True
    )
    torch.testing.assert_close(output(again.eval()), output(adapted))
