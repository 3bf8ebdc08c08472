"""What is particular to models of several stacks, shared layers and other inputs than text."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import transformers
from families import FAMILIES, output, signals

from stat_prune import MACs, Speedup
from stat_prune.data.completion import Completion
from stat_prune.errors import CalibrationWarning, DataError, ModelError, TargetError
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

BY_LABEL = {family.label: family for family in FAMILIES}


@pytest.mark.parametrize("label", ["MPNet", "T5"])
def test_layers_that_keep_different_heads_have_the_position_bias_of_their_own(label, inputs):
    """A head whose output weighs nothing leaves without a change: in each layer another."""
    model = BY_LABEL[label].build()
    folded = []
    for number, block in enumerate(b for b in find_blocks(model) if b.kind == "heads"):
        units = torch.tensor([unit for unit in range(4) if unit != number % 4])
        weight = projection(model.base_model, block.consumer).weight
        with torch.no_grad():
            weight[:, block.channels(torch.tensor([number % 4]))] = 0
        kept = weight.detach()[:, block.channels(units)].double()
        folded.append(FoldedConsumer(block, units, kept, None, 0.0))
    expected = output(model, inputs)
    apply(model, folded)
    torch.testing.assert_close(output(model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_examples_that_say_nothing_of_the_decoder_are_one_warning(prune):
    model = BY_LABEL["T5"].build("ForConditionalGeneration")
    with pytest.warns(CalibrationWarning, match="what the decoder of T5For.* writes") as caught:
        prune(model, MACs(0.6))
    assert sum("the decoder of" in str(one.message) for one in caught) == 1


def test_labels_are_what_the_decoder_reads_behind_its_start():
    completion = Completion(BY_LABEL["T5"].build())
    row = {"input_ids": torch.tensor([5, 6, 3]), "attention_mask": torch.ones(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # 1 is no padding; T5 pads with 0, with which decoders start too.
        found = completion({**row, "target_ids": torch.tensor([7, 8, 3, 0, 0])})
    assert found["decoder_input_ids"].tolist() == [0, 7, 8]
    assert found["decoder_attention_mask"].tolist() == [1, 1, 1]
    assert "target_ids" not in found


@pytest.mark.parametrize(
    ("targets", "read"),
    [
        ([7, 8, 9, 1], [7, 8, 9]),
        ([7, 8, 9, 1, 1, 1], [7, 8, 9]),
        ([7, 8, 9], [7, 8]),  # cut off before its end
        ([1, 1], []),
        ([1], []),
    ],
)
@pytest.mark.parametrize("ends", [1, [3, 1]], ids=str)
def test_labels_keep_their_last_token_where_padding_is_what_ends_a_text(targets, read, ends):
    model = BY_LABEL["Whisper"].build()
    model.config.update({"pad_token_id": 1, "eos_token_id": ends, "decoder_start_token_id": 4})
    row = {"input_features": signals((8, 64), 1, 0)[0], "target_ids": torch.tensor(targets)}
    found = Completion(model)(row)
    assert found["decoder_input_ids"].tolist() == [4, *read]
    assert found["decoder_attention_mask"].tolist() == [1] * (1 + len(read))


@pytest.mark.parametrize(
    ("label", "example", "message"),
    [
        ("ViT", {"input_ids": [2, 5, 3]}, "ViTModel reads 'pixel_values'"),
        ("Bert", {"pixel_values": signals((3, 16, 16), 1, 0)}, "BertModel reads 'input_ids'"),
        ("CLIP", {"pixel_values": signals((3, 16, 16), 1, 0)}, "CLIPModel reads 'input_ids'"),
        ("Whisper", {"input_features": signals((8, 64), 1, 0)}, "has nothing to read"),
    ],
)
def test_examples_that_lack_what_a_model_reads_are_a_data_error(label, example, message, prune):
    with pytest.raises(DataError, match=message):
        prune(BY_LABEL[label].build(), MACs(0.5), dataset=[example])


def test_a_decoder_that_never_attends_to_an_encoder_is_refused(prune, texts):
    config = transformers.BartConfig(**BY_LABEL["Bart"].config)
    with pytest.raises(ModelError, match="without its encoder"):
        prune(transformers.BartForCausalLM(config), MACs(0.5), dataset=texts)


def test_groups_of_several_layers_are_refused(prune):
    model = BY_LABEL["Albert"].build(inner_group_num=2)
    with pytest.raises(ModelError, match="inner_group_num=2"):
        prune(model, MACs(0.5))


def test_shared_layers_are_counted_as_often_as_they_run():
    for block in find_blocks(BY_LABEL["Albert"].build()):  # 4 layers in 2 groups
        assert block.calls == 2
        once = replace(block, calls=1)
        assert block.macs(3, 3, 16) == 2 * once.macs(3, 3, 16)
        assert block.parameters(3, 3) == once.parameters(3, 3)


@pytest.mark.parametrize("label", ["Albert", "Bart", "ViT", "CLIP"])
def test_a_target_of_time_is_refused_where_layers_cannot_be_timed_alone(label, prune):
    with pytest.raises(TargetError, match="one stack of layers that read text"):
        prune(BY_LABEL[label].build(), Speedup(1.5, seq_length=12))


def test_macs_of_images_go_by_their_patches(prune):
    model = BY_LABEL["ViT"].build()
    report = prune(model, MACs(0.5, seq_length=99)).report
    assert report.seq_length == 1 + (16 // 4) ** 2
