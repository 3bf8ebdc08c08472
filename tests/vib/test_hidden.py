"""The mask that all layers share, and the models that lose hidden dimensions."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import SIZES, tiny_bert, tiny_llama
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from vib_runs import finetune, output, sequences, short

import stat_prune
from stat_prune import MACs, Parameters, StatPruneError
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply
from stat_prune.vib import VIBConfig
from stat_prune.vib.hidden import HiddenMask, hiding
from stat_prune.vib.stream import cut_hidden, hidden_count, norms, other_parameters


def roberta() -> PreTrainedModel:
    torch.manual_seed(0)
    return RobertaForSequenceClassification(RobertaConfig(**SIZES)).eval()


def distilbert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, initializer_range=0.2
    )
    return DistilBertForSequenceClassification(config).eval()


MODELS = {
    "BertModel": tiny_bert,
    "BertForMaskedLM": lambda: tiny_bert(BertForMaskedLM),
    "BertForSequenceClassification": lambda: tiny_bert(BertForSequenceClassification),
    "Roberta": roberta,
    "DistilBert": distilbert,
    "Llama": tiny_llama,
    "tied Llama": lambda: tiny_llama(tie_word_embeddings=True),
}


@pytest.fixture(params=list(MODELS))
def model(request) -> PreTrainedModel:
    """A tiny model whose norms have scales and shifts of their own."""
    made = MODELS[request.param]()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def random_mask(size: int, kept: int) -> HiddenMask:
    config = VIBConfig(initial_spread=0.3)
    mask = HiddenMask(size, 1, config, torch.Generator().manual_seed(4))
    mask.kept[mask.mean.argsort()[: size - kept]] = False
    return mask.eval()


def test_hidden_masks_of_mean_one_that_keep_all_change_nothing(model, inputs):
    expected = output(model, inputs)
    config = VIBConfig(initial_spread=0.0)
    mask = HiddenMask(32, 1, config, torch.Generator()).eval()
    with hiding(model, mask, 1.0):
        found = output(model, inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(output(model, inputs), expected)


def test_the_model_under_hidden_masks_is_the_model_that_is_cut(model, inputs, tmp_path):
    dense = model.num_parameters()
    mask = random_mask(32, 24)
    with hiding(model, mask, 1.0):
        masked = output(model, inputs)
    kept = mask.kept.nonzero().squeeze(1)
    counted = other_parameters(model, 24)
    cut_hidden(model, kept, mask.mean)
    assert model.config.hidden_size == 24
    assert model.get_input_embeddings().weight.shape == (64, 24)
    assert other_parameters(model, 24) == pytest.approx(counted)
    assert model.num_parameters() < dense
    found = output(model, inputs)
    if found.shape[-1] == 24:  # no head: the hidden states themselves
        masked = masked[..., kept]
    assert found.abs().max() > 0.1
    assert (found - masked).abs().max() <= 1e-4
    as_pruned_class(model).save_pretrained(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), found)
    assert loaded.num_parameters() == model.num_parameters()
    stock = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert stock.config.hidden_size == 24


def test_layer_norms_are_over_the_dimensions_that_stay(inputs):
    model = tiny_bert()
    mask = random_mask(32, 24)
    norm = next(iter(norms(model).values()))
    stream = torch.randn(2, 5, 32)
    found = mask.norm(norm, stream, 1.0)
    kept = mask.kept
    expected = torch.nn.functional.layer_norm(
        stream[..., kept], (24,), norm.weight[kept], norm.bias[kept], norm.eps
    )
    assert torch.allclose(found[..., kept], expected * mask.mean[kept], atol=1e-5)
    assert not found[..., ~kept].any()


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "tied Llama"])
@pytest.mark.parametrize("target", [MACs(0.6), Parameters(0.6)])
def test_pruning_hidden_dimensions_too_meets_the_target_and_reloads(name, target, inputs, tmp_path):
    model = (
        tiny_llama(tie_word_embeddings=True, intermediate_size=300)
        if "Llama" in name
        else tiny_bert(BertForSequenceClassification, intermediate_size=300)
    )
    result = finetune(model, target, sequences(), hidden=0.75, mode=short())
    before, after = result.report.before, result.report.after
    found = (
        after.block_macs / before.block_macs
        if isinstance(target, MACs)
        else after.parameters / before.parameters
    )
    assert 0.6 * 0.99 <= found <= 0.6
    assert len(result.plan["hidden"]) == 24
    dense, cut = (one.get_input_embeddings().weight.numel() for one in (model, result.model))
    assert cut == 0.75 * dense
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(result.model, inputs))
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["hidden_size"] == 24


def test_training_draws_one_mask_for_all_layers_in_a_forward_pass(inputs):
    model = tiny_bert()
    mask = HiddenMask(32, 1, VIBConfig(initial_log_variance=-1.0), torch.Generator())
    mask.train()
    with hiding(model, mask, 1.0), torch.no_grad():
        model(**inputs)
        first = mask.drawn(4)
        assert first.shape == (4, 32)
        assert torch.equal(mask.drawn(4), first)
        model(**inputs)
        assert not torch.equal(mask.drawn(4), first)


def test_hidden_sizes_that_cannot_be_are_refused(tmp_path):
    model = tiny_bert()
    assert hidden_count(model, 0.7) == 20  # a multiple of the four heads
    for fraction, reason in ((0.05, "less than 4"), (1.5, "fraction that is kept")):
        with pytest.raises(StatPruneError, match=reason):
            hidden_count(model, fraction)
    other = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(StatPruneError, match="GPT2LMHeadModel cannot be pruned"):
        hidden_count(other, 0.5)
    with pytest.raises(StatPruneError, match="hidden= or gradual="):
        finetune(model, MACs(0.5), hidden=0.5, gradual=[0.8], output_dir=tmp_path / "run")


def test_a_model_that_lost_hidden_dimensions_can_lose_heads_too(inputs, tmp_path):
    model = tiny_bert(BertForSequenceClassification)
    mask = random_mask(32, 24)
    cut_hidden(model, mask.kept.nonzero().squeeze(1), mask.mean)
    # Three heads of eight are as wide as the stream, which the config would read as four of six.
    folded = []
    for block in find_blocks(model):
        if block.kind == "heads":
            units = torch.tensor([0, 1, 3])
            weight = projection(model.base_model, block.consumer).weight.double()
            kept = weight[:, block.channels(units)]
            folded.append(FoldedConsumer(block, units, kept, None, 0.0))
    apply(model, folded)
    pruned = as_pruned_class(model)
    pruned.save_pretrained(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(output(loaded, inputs), output(pruned, inputs))


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_a_model_that_lost_sublayers_can_lose_hidden_dimensions_too(build, inputs, tmp_path):
    model = build()
    blocks = find_blocks(model)
    none = torch.empty(0, dtype=torch.int64)
    weight = torch.empty(32, 0, dtype=torch.float64)
    apply(model, [FoldedConsumer(blocks[i], none, weight, None, 1.0) for i in (0, 3)])
    mask = random_mask(32, 24)
    with hiding(model, mask, 1.0):
        masked = output(model, inputs)
    cut_hidden(model, mask.kept.nonzero().squeeze(1), mask.mean)
    found = output(model, inputs)
    assert (found - (masked[..., mask.kept] if build is tiny_bert else masked)).abs().max() <= 1e-4
    as_pruned_class(model).save_pretrained(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out"), inputs), found)
