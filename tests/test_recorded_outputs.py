"""What transformers records on request is there in a pruned model as in a dense one."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import IDS, build, cut

import stat_prune
from stat_prune.families import transformer_layers


@torch.no_grad()
def recorded(model):
    # Attention as it is computed, which only this implementation returns.
    model.set_attn_implementation("eager")
    return model(input_ids=IDS, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("asked_before", [False, True], ids=["fresh", "asked before"])
@pytest.mark.parametrize(
    "class_name",
    ["BertModel", "BertForSequenceClassification", "LlamaModel", "LlamaForCausalLM"],
)
def test_hidden_states_and_attentions_come_in_memory_and_after_reloading(
    class_name, asked_before, tmp_path
):
    model = build(class_name)
    if asked_before:  # transformers puts up its hooks the first time
        recorded(model)
    cut(model).save_pretrained(tmp_path)
    streams: list[torch.Tensor] = []
    for layer in transformer_layers(model):
        layer.register_forward_hook(lambda _module, _args, out: streams.append(out))
    found = recorded(model)
    loaded = recorded(stat_prune.load(tmp_path))
    # The last that a base model returns is behind its final norm, where it has one.
    for state, stream in zip(found.hidden_states[1:-1], streams[:-1], strict=True):
        assert torch.equal(state, stream)
    assert len(found.hidden_states) == 3
    # Layer 0 has lost two of its four heads.
    assert [one.shape[1] for one in found.attentions] == [2, 4]
    for one, other in zip(
        found.hidden_states + found.attentions,
        loaded.hidden_states + loaded.attentions,
        strict=True,
    ):
        assert torch.equal(one, other)
