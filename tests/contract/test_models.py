"""The model given stays what it was; the model returned is an ordinary one in its own dtype."""

from __future__ import annotations

import copy
import inspect
from operator import attrgetter

import pytest
import torch
from families import BESIDES, Family, completed, output
from torch import Tensor
from transformers import PreTrainedModel

import stat_prune
from stat_prune import MACs
from stat_prune.data.calibration import build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.families import architecture_of, find_blocks
from stat_prune.measuring.collectors import collect_moments
from stat_prune.model.projections import projection


@pytest.fixture(scope="session")
def prune(prune_unprobed):
    return prune_unprobed


def assert_untouched(model: PreTrainedModel, before: PreTrainedModel) -> None:
    """`model` is what the copy `before` says it was: class, config, modes, hooks, weights."""
    assert type(model) is type(before)
    assert model.config.to_dict() == before.config.to_dict()
    for (name, module), (_, old) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert module.training == old.training, name
        assert not module._forward_pre_hooks and not module._forward_hooks, name
        assert vars(module).keys() == vars(old).keys(), name
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad == before.get_parameter(name).requires_grad, name


@pytest.mark.parametrize("method", ["stat", *BESIDES])
def test_the_given_model_is_untouched(family: Family, prune, method):
    model = family.build(family.heads[1]).train()
    before = copy.deepcopy(model)
    # Of one key/value head a layer, "stat-paper" keeps all heads, and 0.5 is below what they cost.
    result = prune(model, MACs(0.6), method=method)
    assert_untouched(model, before)
    assert result.model is not model
    assert result.model.training


@pytest.mark.layouts
def test_the_given_model_is_pruned_itself_where_inplace_is_true(family: Family, prune, inputs):
    model = family.build(family.heads[1])
    copied = prune(copy.deepcopy(model), MACs(0.5))
    result = prune(model, MACs(0.5), inplace=True)
    assert result.model is model
    assert torch.equal(output(model, inputs), output(copied.model, inputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_models_come_back_in_their_own_dtype(family: Family, prune, inputs, dtype):
    result = prune(family.build(family.heads[1], dtype=dtype), MACs(0.6))
    assert {p.dtype for p in result.model.parameters()} == {getattr(torch, dtype)}
    assert torch.isfinite(output(result.model, inputs)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_are_float64(family: Family, texts, word_tokenizer, dtype):
    model = family.build(dtype=dtype)
    calibration = build_calibration_set(texts, tokenizer=word_tokenizer, complete=Completion(model))
    for moments in collect_moments(model, find_blocks(model), calibration.batches).values():
        assert moments.gram.dtype == moments.mean.dtype == torch.float64


def test_a_family_knows_the_longest_sequence_that_its_models_take(family: Family):
    model = family.build()
    longest = architecture_of(model).max_positions(model.config)
    if longest is None:  # as with ALiBi
        output(model, {"input_ids": torch.full((1, 200), 5)})
        return
    ids = torch.full((1, longest + 1), 5)

    output(model, {"input_ids": ids[:, 1:]})
    # The rotary positions of a decoder have no end either.
    if not (family.is_decoder or family.relative_positions):
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            output(model, {"input_ids": ids})


def without_gradient(model: PreTrainedModel, batch: dict[str, Tensor]) -> set[str]:
    """Parameters that get no finite gradient from a loss, or from the model's first output."""
    labels = {"labels": torch.tensor([0, 1] * 4)}
    takes_labels = "labels" in inspect.signature(model.forward).parameters
    result = model(**completed(model, batch), **(labels if takes_labels else {}))
    (result.loss if takes_labels else result[0].square().mean()).backward()
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not torch.isfinite(parameter.grad).all()
    }


def test_the_result_can_be_trained(family: Family, prune, inputs):
    model = family.build(family.classifier)
    result = prune(model, MACs(0.6)).model
    # Some parameters have no part in a class: the mask token of DINOv2.
    assert without_gradient(result, inputs) == without_gradient(model, inputs)


@pytest.mark.parametrize("fraction", [0.7, 0.4])
def test_generating_with_the_cache_gives_what_a_full_forward_gives(
    writer: Family, prune, inputs: dict[str, Tensor], tmp_path, fraction
):
    prune(writer.build(writer.writing_head), MACs(fraction)).save(tmp_path / "out")
    model = stat_prune.load(tmp_path / "out")
    batch = completed(model, inputs)
    read = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    cached, computed = (
        model.generate(
            **read, max_new_tokens=8, do_sample=False, num_beams=1, use_cache=use_cache,
            return_dict_in_generate=True, output_logits=True, eos_token_id=None,
        )
        for use_cache in (True, False)
    )  # fmt: skip
    assert torch.equal(cached.sequences, computed.sequences)
    start = cached.sequences.shape[1] - 8
    if model.config.is_encoder_decoder:
        whole = read | {"decoder_input_ids": cached.sequences}
    else:
        whole = {"input_ids": cached.sequences}
    with torch.no_grad():
        full = model(**whole, use_cache=False).logits[:, start - 1 : -1]
    torch.testing.assert_close(torch.stack(cached.logits, 1), full, rtol=1e-4, atol=1e-4)
    assert torch.equal(full.argmax(-1), cached.sequences[:, start:])


def test_key_value_heads_leave_and_the_counts_follow(decoder: Family, prune):
    dense = decoder.build("ForCausalLM")
    if any(block.fixed for block in find_blocks(dense)):
        pytest.skip(f"the heads of {decoder.name} stay")
    result = prune(dense, MACs(0.3), budget="probed")  # which lets key/value heads leave here
    rows = {row.name: row for row in result.report.blocks}
    base = result.model.base_model
    for block in find_blocks(dense):
        row = rows[block.name]
        counts = {
            "heads": row.kept,
            "groups": row.kept_groups,
            "channels": row.kept * block.unit_size,
            "heads_per_group": row.kept // row.kept_groups,
            "neurons": row.kept,
        }
        for path, attributes in block.attributes.items():
            for name, count in attributes.items():
                remembered = attrgetter(name)(base.get_submodule(path))
                assert remembered == counts[count], (path, name)
        for producer in block.producers:
            made = sum(counts["heads" if p == "unit" else "groups"] for p in producer.parts)
            rows_made = len(projection(base, producer.path).weight)
            assert rows_made == made * block.unit_size, producer.path
    heads = [row for row in result.report.blocks if row.kind == "heads"]
    assert any(row.kept < row.total for row in heads)
    if heads[0].total_groups > 1:
        assert any(row.kept_groups < row.total_groups for row in heads)
