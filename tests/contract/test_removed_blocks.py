"""A block of which nothing is left: its consumer's bias stays, and the model is an ordinary one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from families import FAMILIES, Family, completed, output
from isolation import outputs_without_stat_prune
from test_reload import assert_same_weights, auto_class
from test_report import SEQ_LENGTH, counted_macs
from transformers import PreTrainedModel

import stat_prune
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.families import find_blocks
from stat_prune.model.blocks import Block
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

BY_LABEL = {family.label: family for family in FAMILIES}


def removable(model: PreTrainedModel) -> list[Block]:
    return [block for block in find_blocks(model) if block.removable and not block.fixed]


def every_other(model: PreTrainedModel) -> list[Block]:
    """The heads of even layers and the neurons of odd ones, where they can leave."""
    return [b for b in removable(model) if (b.kind == "heads") == (b.layer % 2 == 0)]


def new_bias(block: Block) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(block.layer)
    bias = torch.randn(block.output_size, generator=generator, dtype=torch.float64)
    return bias if block.consumer_bias else None


def remove(model: PreTrainedModel, blocks: Sequence[Block]) -> PreTrainedModel:
    """Leave nothing but a bias of some blocks, in place."""
    folded = [
        FoldedConsumer(
            block,
            units=torch.empty(0, dtype=torch.int64),
            weight=torch.empty(block.output_size, 0, dtype=torch.float64),
            bias=new_bias(block),
            output_error=1.0,
        )
        for block in blocks
    ]
    apply(model, folded)
    return as_pruned_class(model)


@torch.no_grad()
def silence(model: PreTrainedModel, blocks: Sequence[Block]) -> PreTrainedModel:
    """The same by other means, in place: consumers that read all channels with weight zero."""
    for block in blocks:
        consumer = projection(model.base_model, block.consumer)
        consumer.weight.zero_()
        if consumer.bias is not None:
            consumer.bias.add_(new_bias(block))
    return model


@pytest.mark.parametrize("which", [every_other, removable])
def test_a_removed_block_leaves_its_bias_and_nothing_else(family: Family, inputs, which):
    model, dense = family.build(family.classifier), family.build(family.classifier)
    blocks = which(model)
    expected = output(silence(dense, blocks), inputs)
    remove(model, blocks)
    torch.testing.assert_close(output(model, inputs), expected, rtol=1e-5, atol=1e-5)
    left = {block.name: block for block in find_blocks(model)}
    assert all(left[block.name].num_units == left[block.name].num_groups == 0 for block in blocks)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By family a model without some blocks, and the folder that it is saved in."""
    made = {}
    for family in FAMILIES:
        model = family.build(family.heads[1])
        if auto_class(model) is None:
            model = family.build()
        remove(model, every_other(model))
        folder = tmp_path_factory.mktemp("removed") / family.label
        save_checkpoint(folder, model=model)
        made[family.label] = (model, folder)
    return made


@pytest.fixture(scope="module")
def alone(saved, inputs, tmp_path_factory):
    """What the saved models give in a process without stat_prune."""
    folders = [(folder, auto_class(model)) for model, folder in saved.values()]
    batches = [completed(model, inputs) for model, _ in saved.values()]
    work = tmp_path_factory.mktemp("alone")
    return dict(zip(saved, outputs_without_stat_prune(folders, batches, work), strict=True))


def test_models_without_some_blocks_load_to_the_bit_in_each_way(
    family: Family, saved, alone, inputs
):
    model, folder = saved[family.label]
    loaded = stat_prune.load(folder)
    assert_same_weights(loaded, model)
    assert torch.equal(output(loaded, inputs), output(model, inputs))
    assert torch.equal(alone[family.label], output(model, inputs))


def test_a_removed_block_costs_no_macs(family: Family):
    model = family.build(attn_implementation="eager", experts_implementation="eager")
    before = counted_macs(model, family.stacks)
    blocks = every_other(model)
    remove(model, blocks)
    less = before - counted_macs(model, family.stacks)
    if family.signals:  # images and sounds have lengths of their own
        assert less > 0
        return
    expected = sum(b.macs(b.num_units, b.num_groups, SEQ_LENGTH) for b in blocks)
    assert less == pytest.approx(expected, rel=0.005)


def test_the_cache_counts_tokens_without_the_heads_of_the_first_layer(decoder: Family, inputs):
    model = decoder.build("ForCausalLM")
    remove(model, removable(model)[:1])
    ids = inputs["input_ids"]
    with torch.no_grad():
        full = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :7], use_cache=True)
        assert first.past_key_values.get_seq_length() == 7
        second = model(input_ids=ids[:, 7:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(second, full[:, 7:], rtol=1e-4, atol=1e-4)
    written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        again = model(input_ids=written[:, :-1]).logits[:, ids.shape[1] - 1 :].argmax(-1)
    assert torch.equal(again, written[:, ids.shape[1] :])


@pytest.mark.parametrize("label", ["Bart", "T5", "T5-gated", "Whisper"])
def test_writers_without_heads_in_some_layers_write_the_same_with_a_cache(label, inputs):
    model = BY_LABEL[label].build("ForConditionalGeneration")
    remove(model, [block for block in removable(model) if block.kind == "heads"][:-1])
    batch = completed(model, inputs)
    reads = {name: values for name, values in batch.items() if not name.startswith("decoder")}
    ids = batch["decoder_input_ids"]
    with torch.no_grad():
        full = model(**reads, decoder_input_ids=ids, use_cache=False).logits
        first = model(**reads, decoder_input_ids=ids[:, :7], use_cache=True)
        cache = first.past_key_values
        assert cache.get_seq_length() == 7
        second = model(**reads, decoder_input_ids=ids[:, 7:], past_key_values=cache).logits
    torch.testing.assert_close(second, full[:, 7:], rtol=1e-4, atol=1e-4)


def test_every_layer_still_has_attentions_and_hidden_states(family: Family, inputs):
    # Only "eager" attention has weights to show.
    model = family.build(attn_implementation="eager")
    dense = asks_for_all(model, inputs)
    remove(model, every_other(model))
    found = asks_for_all(model, inputs)
    assert found.keys() == dense.keys()
    for name, values in found.items():
        assert len(values) == len(dense[name]), name
        for after, before in zip(values, dense[name], strict=True):
            assert after.shape == before.shape or (
                "attentions" in name and after.shape == (before.shape[0], 0, *before.shape[2:])
            )


def asks_for_all(model: PreTrainedModel, inputs) -> dict[str, tuple[torch.Tensor, ...]]:
    """Attentions and hidden states of all layers, by the name of the output."""
    batch = completed(model, inputs)
    with torch.no_grad():
        out = model(**batch, output_attentions=True, output_hidden_states=True)
    names = ("attentions", "hidden_states")
    return {name: out[name] for name in out if name.endswith(names) and out[name] is not None}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("label", ["Bert", "Llama", "GPT2"])
def test_copies_compute_with_their_own_weights(label, duplicate, inputs):
    model = BY_LABEL[label].build()
    remove(model, every_other(model))
    twin = duplicate(model)
    expected = output(model, inputs)
    assert torch.equal(output(twin, inputs), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(output(twin, inputs), expected)


@pytest.mark.parametrize("label", ["Bert", "Llama", "GPT2"])
def test_gradients_reach_every_linear_layer_that_is_left(label, inputs):
    model = BY_LABEL[label].build()
    remove(model, every_other(model))
    model(**inputs)[0].square().sum().backward()
    blocks = [block for block in find_blocks(model) if block.num_units]
    assert blocks
    for path in (p for b in blocks for p in (b.consumer, *(one.path for one in b.producers))):
        weight = projection(model.base_model, path).module.weight
        assert weight.grad is not None and weight.grad.any(), path


@pytest.mark.parametrize("label", ["Bert", "Llama"])
def test_compiled_and_exported_models_agree(label, inputs):
    model = BY_LABEL[label].build()
    remove(model, every_other(model))
    expected = output(model, inputs)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs)[0], expected, rtol=1e-5, atol=1e-5)
        program = torch.export.export(model, (), {**inputs, "use_cache": False}, strict=False)
        torch.testing.assert_close(
            program.module()(**inputs, use_cache=False)[0], expected, rtol=1e-5, atol=1e-5
        )
