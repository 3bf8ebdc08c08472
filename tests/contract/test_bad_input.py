"""Bad input is one clear error, before any work is lost, and leaves the model as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import transformers
from families import FAMILIES, Family, output
from test_models import assert_untouched
from tiny_models import tiny_bert, tiny_llama
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stat_prune import MACs, Parameters, StatPruneError, Tolerance
from stat_prune.errors import (
    CalibrationWarning,
    DataError,
    ModelError,
    NonFiniteActivationsError,
    NonFiniteWeightsError,
    SaveError,
    TargetError,
    UnsupportedArchitectureError,
)
from stat_prune.families import find_blocks
from stat_prune.model.projections import projection

#: An encoder, a decoder and both: what refuses bad input is the same code for every family.
ROWS = [family for family in FAMILIES if family.label in ("Bert", "Llama", "T5")]
BERT, LLAMA, _ = ROWS
PADDING = {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}
PADDING |= {"attention_mask": torch.zeros(2, 5, dtype=torch.int64)}

BAD_DATA: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an empty list": ([], {}, "dataset is empty"),
    "nothing but padding": ([PADDING], {}, "only padding"),
    "texts without tokenizer": (["the cat sat"], {"tokenizer": None}, "no tokenizer"),
    "a token id beyond the vocabulary": ([{"input_ids": [2, 64, 3]}], {}, "64 is outside.*64"),
    "a dataset that does not exist": ("no/such-dataset", {}, "no/such-dataset"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_used_is_a_data_error(family: Family, prune, case):
    if family.signals and "token id" in case:
        pytest.skip("token ids alone are not what it reads: tests/contract/test_encoder_decoders")
    dataset, settings, message = BAD_DATA[case]
    model = family.build()
    before = copy.deepcopy(model)
    with pytest.raises(DataError, match=message):
        prune(model, MACs(0.5), dataset=dataset, **settings)
    assert_untouched(model, before)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, 60, math.nan, "half", True, None, {}, {"ffn": 1}])
@pytest.mark.parametrize("target", [MACs, Parameters, Tolerance])
def test_a_fraction_outside_0_to_1_is_a_target_error_that_quotes_it(target, value):
    with pytest.raises(TargetError) as caught:
        target(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("target", [MACs(0.01), Parameters(0.01), Parameters({"heads": 0.1})])
@pytest.mark.parametrize("uniform", [False, True])
def test_an_unreachable_target_states_the_least_that_can_be_reached(
    family: Family, prune, target, uniform, collected
):
    model = family.build()
    before = copy.deepcopy(model)
    with pytest.raises(TargetError, match=r"below the least.* cost (0\.\d+|1) of the whole"):
        prune(model, target, uniform=uniform)
    assert_untouched(model, before)
    assert collected == []


def test_the_least_that_the_error_states_can_be_reached(family: Family, prune):
    model = family.build()
    with pytest.raises(TargetError) as caught:
        prune(model, MACs(0.01))
    least = float(str(caught.value).split(" cost ")[1].split(" ")[0])
    result = prune(model, MACs(least * 1.001))
    for block, row in zip(find_blocks(model), result.report.blocks, strict=True):
        assert row.kept == (row.total if block.fixed else block.multiple)


@pytest.fixture
def collected(monkeypatch) -> list[str]:
    """What was collected: empty where an error came before the work."""
    calls: list[str] = []
    from stat_prune.pipeline import loaded_model

    collect = loaded_model.collect_moments
    monkeypatch.setattr(
        loaded_model,
        "collect_moments",
        lambda *a, **k: (calls.append("moments"), collect(*a, **k))[1],
    )
    return calls


def test_an_unsupported_architecture_lists_the_supported_ones_and_how_to_add_one(prune):
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1)
    with pytest.raises(UnsupportedArchitectureError) as caught:
        prune(transformers.MambaForCausalLM(config), MACs(0.5))
    for word in ("mamba", "bert", "llama", "register_architecture"):
        assert word in str(caught.value)


def spoilt(model: PreTrainedModel, value: float) -> str:
    """One entry of what layer 1's heads read is spoilt; the weight's name."""
    block = next(block for block in find_blocks(model) if block.layer == 1)
    queries = projection(model.base_model, block.producers[0].path)
    with torch.no_grad():
        queries.weight[0, 0] = value
    return f"{block.producers[0].path}.weight"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["stat", "stat-paper"])
def test_weights_that_are_not_finite_are_named_before_any_work(
    family: Family, prune, value, method, collected
):
    model = family.build()
    name = spoilt(model, value)
    with pytest.raises(NonFiniteWeightsError, match=rf"1 weights.*{name} \(1 .*{value}\)"):
        prune(model, MACs(0.5), method=method)
    assert collected == []


def test_every_weight_that_is_not_finite_is_named(prune):
    model = BERT.build("ForSequenceClassification")
    for name in ("classifier.weight", "bert.encoder.layer.1.output.dense.weight"):
        model.get_parameter(name).data[0, 1] = math.nan
    with pytest.raises(NonFiniteWeightsError) as caught:
        prune(model, MACs(0.6))
    assert "classifier.weight" in str(caught.value)
    assert "bert.encoder.layer.1.output.dense.weight" in str(caught.value)


def infinite_scores(model: PreTrainedModel) -> None:
    """Weights of layer 1 that are finite, and too large for what is made of them."""
    block = next(block for block in find_blocks(model) if block.layer == 1)
    for producer in block.producers:
        with torch.no_grad():
            projection(model.base_model, producer.path).weight.fill_(1e38)


@pytest.mark.parametrize("method", ["stat", "stat-paper"])
def test_activations_that_are_not_finite_name_the_block_and_the_batch(
    family: Family, prune, method
):
    model = family.build()
    infinite_scores(model)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    with pytest.raises(NonFiniteActivationsError, match=r"\.1\..*batch 0"):
        prune(model, MACs(0.5), method=method)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_fewer_tokens_than_channels_warn_with_both_numbers_and_give_a_usable_model(
    family: Family, prune, inputs
):
    if family.signals:
        pytest.skip("two texts are not what it reads")
    model = family.build()
    widest = max(block.num_channels for block in find_blocks(model))
    with pytest.warns(CalibrationWarning, match=f"10 tokens.*{widest} channels"):
        result = prune(model, MACs(0.5), dataset=["the cat sat", "a dog ran"])
    assert torch.isfinite(output(result.model, inputs)).all()


def test_tokens_are_compared_with_the_channels_of_the_stack_that_reads_them(prune):
    """100 tokens for the encoder, 20 for the decoder's 48 channels."""
    t5 = next(family for family in FAMILIES if family.label == "T5")
    model = t5.build("ForConditionalGeneration")
    rows = [
        {"input_ids": torch.arange(5, 25), "labels": torch.tensor([7, 8 + i, 9, 3])}
        for i in range(5)
    ]
    with pytest.warns(
        CalibrationWarning, match=r"20 tokens \(decoder_attention_mask\), fewer than"
    ):
        prune(model, MACs(0.6), dataset=rows)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_a_model_without_layers_is_refused(build, prune):
    with pytest.raises(ModelError, match="has no layers to prune"):
        prune(build(num_hidden_layers=0), MACs(0.5))


@pytest.mark.parametrize(
    "missing",
    ["share_att_key", "pos_att_type", "position_buckets", "max_relative_positions"],
)
def test_a_deberta_whose_config_lacks_what_transformers_does_without_is_pruned(missing, prune):
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True}
    config = transformers.DebertaV2Config(**sizes, **relative, position_buckets=16)
    if missing == "pos_att_type":  # nothing but keys and queries
        config.pos_att_type = []
    else:
        delattr(config, missing)
    report = prune(transformers.DebertaV2Model(config).eval(), MACs(0.6)).report
    assert report.after.block_macs <= 0.6 * report.before.block_macs * (1 + 1e-9)


DEGENERATE = {
    "all alike": [{"input_ids": torch.arange(4, 13)}] * 40,
    "single tokens": [{"input_ids": torch.tensor([3 + i % 30])} for i in range(40)],
    "one token": [{"input_ids": torch.tensor([5])}] * 40,
}


@pytest.mark.parametrize("data", DEGENERATE)
@pytest.mark.parametrize("method", ["stat", "id-unweighted", "flap", "corp", "stat-paper", "obs"])
@pytest.mark.filterwarnings("ignore::stat_prune.linalg.NumericalWarning")
@pytest.mark.filterwarnings("ignore::stat_prune.errors.CalibrationWarning")
def test_examples_that_are_all_alike_or_of_one_token_give_a_sound_model(data, method, prune):
    model = BERT.build("ForSequenceClassification")
    result = prune(model, MACs(0.6), dataset=DEGENERATE[data], method=method)
    assert all(bool(torch.isfinite(weight).all()) for weight in result.model.parameters())
    assert 0.5 < result.report.after.block_macs / result.report.before.block_macs <= 0.6001


def test_a_model_in_training_mode_is_measured_as_in_evaluation_and_stays_in_it(prune):
    model = BERT.build("ForSequenceClassification")
    assert model.config.hidden_dropout_prob > 0
    expected = prune(model, MACs(0.6))
    found = prune(model.train(), MACs(0.6))
    assert model.training and found.model.training
    assert found.plan == expected.plan
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], weight)


class Int8Linear(nn.Linear):
    """Stands for the linear layers of quantization libraries."""


def test_quantized_and_sharded_weights_are_refused(family: Family, prune):
    quantized = family.build()
    for module in quantized.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.__class__ = Int8Linear
    with pytest.raises(ModelError, match="Int8Linear.*full-precision"):
        prune(quantized, MACs(0.5))
    with torch.device("meta"):
        offloaded = family.build()
    with pytest.raises(ModelError, match="not in this process's memory"):
        prune(offloaded, MACs(0.5))


def through_its_weight(owner: nn.Module) -> None:
    """Compute with the weight of a layer, which is then never called."""

    def forward(hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        dense = nn.functional.linear(hidden_states, owner.dense.weight, owner.dense.bias)
        return owner.LayerNorm(dense + input_tensor)

    owner.forward = forward


def test_attention_that_reads_its_heads_in_a_way_of_its_own_is_refused(prune):
    mixing = LLAMA.build()
    for layer in mixing.layers:
        layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj, nn.Identity())
    with pytest.raises(UnsupportedArchitectureError, match="no linear layer 'self_attn.o_proj'"):
        prune(mixing, MACs(0.5))
    functional = BERT.build()
    for layer in functional.encoder.layer:
        through_its_weight(layer.attention.output)
    with pytest.raises(
        ModelError, match=r"never calls .*attention\.output\.dense \(2 such.*ignore"
    ):
        prune(functional, MACs(0.5))
    result = prune(functional, MACs({"neurons": 0.5}))
    assert {row.kept for row in result.report.blocks if row.kind == "heads"} == {4}


@pytest.mark.parametrize(
    "config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"]
)
def test_weights_that_torchao_quantized_are_refused(prune, config):
    quantization = pytest.importorskip(
        "torchao.quantization", reason="needs torchao (the extra `quantize`)"
    )
    model = LLAMA.build("ForCausalLM")
    quantization.quantize_(model, getattr(quantization, config)())
    with pytest.raises(ModelError, match="q_proj are no plain tensor.*Int8Tensor.*full-precision"):
        prune(model, MACs(0.5))


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_weights_that_bitsandbytes_quantized_are_refused(prune, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (the extra `quantize`)")
    LLAMA.build("ForCausalLM").save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=transformers.BitsAndBytesConfig(**{bits: True}),
        device_map="cpu",
    )
    with pytest.raises(ModelError, match="is quantized. Prune the full-precision model"):
        prune(model, MACs(0.5))


def test_what_is_no_transformers_model_is_refused(prune):
    with pytest.raises(ModelError, match="PreTrainedModel, got Linear"):
        prune(nn.Linear(2, 2), MACs(0.5))


def test_an_existing_output_directory_is_refused_before_the_work(prune, tmp_path, collected):
    with pytest.raises(SaveError, match="exists"):
        prune(BERT.build(), MACs(0.5), output_dir=tmp_path)
    assert collected == []


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "magic"},
        {"batch_size": 0},
        {"num_calibration_samples": -1},
        {"round_to": 2.5},
        {"max_seq_length": 0},
        {"ignore": ["no.such.block"]},
        {"ignore": [0, 1]},
    ],
    ids=str,
)
def test_a_malformed_setting_is_an_error_that_quotes_it(prune, settings, collected):
    (value,) = settings.values()
    with pytest.raises(ValueError) as caught:
        prune(LLAMA.build(), MACs(0.5), **settings)
    assert str(value).strip("[]") in str(caught.value)
    assert collected == []


def test_every_error_is_a_stat_prune_error():
    for error in (DataError, ModelError, NonFiniteActivationsError, SaveError, TargetError):
        assert issubclass(error, StatPruneError)
