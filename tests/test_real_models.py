"""A real encoder and a real decoder: pruned, saved, reloaded and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from isolation import outputs_without_stat_prune
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.cli.demo.demo_data import find_sentence_encoder
from stat_prune.evaluation import perplexity, read_glue, sts_spearman

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

# In both vocabularies.
IDS = torch.tensor([[101, 1037, 1251, 2012, 2028, 102]])


@pytest.fixture(scope="module")
def encoder():
    folder = find_sentence_encoder()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def encoder_family(encoder, real_data: Path):
    model, tokenizer = encoder
    train = read_glue("stsb", real_data / "data" / "glue", split="train")
    return stat_prune.prune_family(
        model,
        [text for pair in train.texts for text in pair],
        tokenizer=tokenizer,
        targets=[MACs(kept, seq_length=20) for kept in (1.0, 0.4)],
        num_calibration_samples=512,
        effort="fast",
        progress=False,
    )


@pytest.fixture(scope="module")
def decoder(real_data: Path):
    folder = real_data / "models" / "llama-tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    stories = json.loads((real_data / "data" / "tinystories" / "stories_1000.json").read_text())
    return model, AutoTokenizer.from_pretrained(folder), stories


def pruned_decoder(decoder, method: str = "stat", kept: float = 0.8, **options):
    model, tokenizer, stories = decoder
    return stat_prune.prune(
        model,
        stories[:200],
        tokenizer=tokenizer,
        target=Parameters(kept),
        method=method,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def decoder_result(decoder):
    return pruned_decoder(decoder)


def test_the_encoder_keeps_its_similarity_judgements(encoder, encoder_family, real_data: Path):
    _, tokenizer = encoder
    dev = read_glue("stsb", real_data / "data" / "glue", split="dev")
    assert sts_spearman(encoder_family[1].model, tokenizer, dev.texts, dev.labels) >= 0.853


def test_the_decoder_keeps_its_perplexity_better_than_baselines(decoder, decoder_result):
    model, tokenizer, stories = decoder

    def score(one):
        return perplexity(one, tokenizer, stories[200:400])["perplexity"]

    ours = score(decoder_result.model)
    assert ours <= 1.27 * score(model)
    for baseline in ("magnitude", "random", "id-uncorrected"):
        assert ours < score(pruned_decoder(decoder, baseline).model)


def test_keeping_everything_keeps_the_outputs(encoder, encoder_family, decoder):
    whole = pruned_decoder(decoder, kept=1.0, effort="fast").model
    with torch.no_grad():
        for dense, kept in ((encoder[0], encoder_family[0].model), (decoder[0], whole)):
            assert float((dense(IDS)[0] - kept(IDS)[0]).abs().max()) <= 1e-5


def test_both_reload_to_the_bit_in_each_way(encoder_family, decoder_result, tmp_path: Path):
    results = {
        ("encoder", "AutoModel"): encoder_family[1],
        ("decoder", "AutoModelForCausalLM"): decoder_result,
    }
    folders = [(tmp_path / name, auto_class) for name, auto_class in results]
    for (folder, _), result in zip(folders, results.values(), strict=True):
        result.save(folder)
    (tmp_path / "work").mkdir()
    isolated = outputs_without_stat_prune(folders, IDS, tmp_path / "work")
    with torch.no_grad():
        for (folder, _), result, found in zip(folders, results.values(), isolated, strict=True):
            expected = result.model(IDS)[0]
            assert torch.equal(stat_prune.load(folder)(IDS)[0], expected)
            assert torch.equal(found, expected)
