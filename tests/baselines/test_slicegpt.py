"""SliceGPT changes nothing where nothing is lost, and counts everything that it adds."""

from __future__ import annotations

import copy

import pytest
import torch
from hand_pruned import IDS, build, output
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from slicegpt import slicegpt
from slicing import sliced_copy
from stat_prune import MACs, Parameters, Tolerance
from stat_prune.errors import (
    NonFiniteActivationsError,
    SaveError,
    TargetError,
    UnsupportedArchitectureError,
)

LENGTHS = (12, 7, 12, 9) * 10
ROWS = [
    {"input_ids": torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(i))}
    for i, n in enumerate(LENGTHS)
]
DECODERS = pytest.mark.parametrize(
    "class_name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
)


def decoder(class_name: str) -> PreTrainedModel:
    """A tiny decoder whose norms have scales and whose biases are not zero."""
    model = build(class_name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def slice_to(model: PreTrainedModel, target, **settings):
    (result,) = slicegpt(model, ROWS, targets=[target], progress=False, **settings)
    return result


@DECODERS
def test_rotating_alone_changes_nothing(class_name):
    model = decoder(class_name)
    batches = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
    rotated = sliced_copy(model, batches, 32)
    assert not torch.allclose(rotated.lm_head.weight, model.lm_head.weight, atol=0.01)
    torch.testing.assert_close(output(rotated), output(model), rtol=1e-4, atol=1e-4)


@DECODERS
def test_a_residual_stream_of_low_rank_loses_nothing(class_name):
    model = decoder(class_name)
    subspace = torch.linalg.qr(torch.randn(32, 14)).Q
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(
            model.model.embed_tokens.weight @ subspace @ subspace.T
        )
        for layer in model.model.layers:
            # A norm's scale leads out of the subspace, but the residual stream stays within.
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(subspace @ subspace.T @ writer.weight)
                if writer.bias is not None:
                    writer.bias.copy_(subspace @ subspace.T @ writer.bias)
    result = slice_to(model, Parameters(0.55))
    assert 14 <= result.model.lm_head.in_features < 20
    torch.testing.assert_close(output(result.model), output(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_parameters_of_blocks_and_residual_matrices_are_within_the_budget(fraction):
    model = decoder("LlamaForCausalLM")
    result = slice_to(model, Parameters(fraction))
    counted = sum(p.numel() for p in result.model.model.layers.parameters())
    dense = sum(p.numel() for n, p in model.model.layers.named_parameters() if "norm" not in n)
    assert result.report.after.block_parameters == counted
    assert fraction - 0.05 <= counted / dense <= fraction
    assert result.report.after.parameters == sum(p.numel() for p in result.model.parameters())


def test_macs_are_those_that_torch_counts():
    model = decoder("LlamaForCausalLM")
    model.set_attn_implementation("eager")
    result = slice_to(model, MACs(0.7, seq_length=IDS.shape[1]))
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        result.model(input_ids=IDS)
    counts = counter.get_flop_counts()
    layers = [name for name in counts if name.endswith((".layers.0", ".layers.1"))]
    counted = sum(sum(counts[name].values()) for name in layers) / 2 / len(IDS)
    assert len(layers) == 2
    assert result.report.after.block_macs == pytest.approx(counted, rel=0.005)
    assert result.report.after.block_macs <= 0.7 * result.report.before.block_macs


def test_padding_and_batch_size_change_nothing():
    model = decoder("LlamaForCausalLM")
    alone, together = (
        slice_to(model, Parameters(0.8), batch_size=size).model for size in (1, len(ROWS))
    )
    torch.testing.assert_close(output(alone), output(together), rtol=1e-3, atol=1e-3)


def test_the_given_model_is_untouched_and_the_result_generates():
    model = decoder("LlamaForCausalLM")
    before = copy.deepcopy(model)
    result = slice_to(model, Parameters(0.8))
    assert model.config.to_dict() == before.config.to_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    generated = result.model.generate(IDS, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        full = result.model(input_ids=generated, use_cache=False).logits
    assert torch.equal(full[:, IDS.shape[1] - 1 : -1].argmax(-1), generated[:, IDS.shape[1] :])


def test_saving_is_refused(tmp_path):
    result = slice_to(decoder("LlamaForCausalLM"), Parameters(0.8))
    for save in (result.save, result.model.save_pretrained):
        with pytest.raises(SaveError, match="cannot be saved.*stat_prune.prune"):
            save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("class_name", ["BertModel", "BertForMaskedLM", "LlamaModel"])
def test_what_has_no_such_head_is_refused(class_name):
    with pytest.raises(UnsupportedArchitectureError, match=f"LlamaForCausalLM, not {class_name}"):
        slice_to(build(class_name), Parameters(0.8))


def test_activations_that_are_not_finite_are_refused():
    model = decoder("LlamaForCausalLM")
    model.model.layers[1].mlp.down_proj.weight.data.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(NonFiniteActivationsError, match="residual stream.*non-finite"):
        slice_to(model, Parameters(0.8))


@pytest.mark.parametrize("target", [Tolerance(0.1), Parameters({"neurons": 0.5}), MACs(0.001)])
def test_targets_that_it_does_not_have_or_meet_are_refused(target):
    with pytest.raises(TargetError, match="one fraction|below the least"):
        slice_to(decoder("LlamaForCausalLM"), target)
