"""Models that something is attached to: adapters, checkpointing, tied weights."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES, output

import stat_prune
from stat_prune import MACs
from stat_prune.errors import ModelError
from stat_prune.families import transformer_layers

BY_LABEL = {family.label: family for family in FAMILIES}
LAYOUTS = pytest.mark.parametrize("label", ["Bert", "Llama", "GPT2", "Phi3", "Mixtral"])
TARGETS = {"heads": ["q_proj", "v_proj"], "the head": ["lm_head"]}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("targets", TARGETS)
def test_attached_adapters_are_refused_and_merged_ones_are_pruned(prune, inputs, targets):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=TARGETS[targets], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    attached = BY_LABEL["Llama"].build("ForCausalLM")
    attached.add_adapter(config)
    with pytest.raises(ModelError, match="adapters.*merge"):
        prune(attached, MACs(0.5))
    wrapped = peft.get_peft_model(BY_LABEL["Llama"].build("ForCausalLM"), config)
    with pytest.raises(ModelError, match="merge_and_unload"):
        prune(wrapped, MACs(0.5))
    with pytest.raises(ModelError, match="adapters.*merge"):
        prune(wrapped.base_model.model, MACs(0.5))
    merged = wrapped.merge_and_unload()
    whole = prune(merged, MACs(1.0)).model
    assert (output(whole, inputs) - output(merged, inputs)).abs().max() <= 1e-5


@LAYOUTS
def test_gradient_checkpointing_changes_nothing_and_stays_on(prune, inputs, label):
    plain = BY_LABEL[label].build("ForSequenceClassification")
    checkpointing = copy.deepcopy(plain).train()
    enable = getattr(checkpointing, "activation_checkpointing_enable", None)
    (enable or checkpointing.gradient_checkpointing_enable)()
    before = copy.deepcopy(checkpointing)
    result = prune(checkpointing, MACs(0.5))
    for name, tensor in before.state_dict().items():
        assert torch.equal(checkpointing.state_dict()[name], tensor), name
    assert checkpointing.training
    assert result.plan == prune(plain, MACs(0.5)).plan
    layers = transformer_layers(result.model)
    assert all(layer.gradient_checkpointing for layer in layers)
    result.model(**inputs, labels=torch.tensor([0, 1] * 4)).loss.backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())


@pytest.mark.parametrize("label", ["Llama", "GPT2", "OPT-norms before", "Gemma2", "Falcon-grouped"])
def test_tied_weights_stay_tied(prune, tmp_path, label):
    model = BY_LABEL[label].build("ForCausalLM", tie_word_embeddings=True)
    result = prune(model, MACs(0.5))
    result.save(tmp_path / "out")
    for one in (result.model, stat_prune.load(tmp_path / "out")):
        assert one.get_output_embeddings().weight is one.get_input_embeddings().weight


def test_layers_that_share_their_weights_are_refused_and_copies_are_pruned(prune):
    whole = BY_LABEL["Llama"].build("ForCausalLM")
    whole.model.layers[1] = whole.model.layers[0]
    weight = BY_LABEL["Llama"].build("ForCausalLM")
    first, second = weight.model.layers
    second.mlp.down_proj.weight = first.mlp.down_proj.weight
    for model in (whole, weight):
        with pytest.raises(ModelError, match=r"layers\.0.* and layers\.1.* share .*copy\.deepcopy"):
            prune(model, MACs(0.5))
    second.mlp.down_proj = copy.deepcopy(first.mlp.down_proj)
    assert prune(weight, MACs(0.5)).report.after.block_macs


def test_a_sentence_encoder_without_a_transformer_is_an_error_with_the_remedy(prune):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    encoder = sentence_transformers.SentenceTransformer(modules=[torch.nn.Identity()])
    with pytest.raises(ModelError, match="SentenceTransformer holds no model .*backend='torch'"):
        prune(encoder, MACs(0.5))
