"""The second stage on a real encoder and a real decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from vib_runs import masked_and_cut, output

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.evaluation import read_glue
from stat_prune.vib import MODES, VIBConfig, vib_finetune

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

IDS = {"input_ids": torch.tensor([[101, 1037, 1251, 2012, 2028, 102]])}  # in both vocabularies


def encoder(real_data: Path):
    folder = real_data / "models" / "minilm-sst2"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    texts = read_glue("sst2", real_data / "data" / "glue", split="train").texts
    return model.eval(), AutoTokenizer.from_pretrained(folder), texts


def decoder(real_data: Path):
    folder = real_data / "models" / "llama-tinystories-656k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stories = json.loads((real_data / "data" / "tinystories" / "stories_1000.json").read_text())
    return model.eval(), AutoTokenizer.from_pretrained(folder), stories[400:]


@pytest.mark.parametrize("of", [encoder, decoder])
def test_a_real_model_under_masks_in_mean_mode_is_the_model_that_is_cut(of, real_data):
    masked, cut = masked_and_cut(of(real_data)[0], IDS)
    assert cut.abs().max() > 0.1
    assert (cut - masked).abs().max() <= 1e-4


@pytest.mark.parametrize("of", [encoder, decoder])
@pytest.mark.parametrize(("mode", "target"), [("masks", MACs(0.5)), ("fast", Parameters(0.5))])
def test_a_real_model_keeps_what_was_asked_within_one_percent_and_reloads_to_the_bit(
    of, mode, target, real_data, tmp_path
):
    model, tokenizer, texts = of(real_data)
    steps = {"mask_steps": 4, "finetune_steps": 2, "batch_size": 4, "correction_samples": 16}
    config = VIBConfig(**MODES[mode].to_dict() | steps)
    result = vib_finetune(
        model, texts[:160], target=target, mode=config, tokenizer=tokenizer, progress=False
    )
    before, after = result.report.before, result.report.after
    kept = after.block_macs / before.block_macs
    if isinstance(target, Parameters):
        kept = after.block_parameters / before.block_parameters
    assert 0.495 <= kept <= 0.5
    result.save(tmp_path / "out")
    assert torch.equal(output(stat_prune.load(tmp_path / "out"), IDS), output(result.model, IDS))
