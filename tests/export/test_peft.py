"""Adapters on a pruned model: trained, saved, put on the reloaded model and merged."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import output, pruned
from inputs import random_batch

import stat_prune
from stat_prune.checkpoint import save_checkpoint

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
