"""Heads that generation counts by their numbers have new ones, and heads of models that compare."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers

import stat_prune
from stat_prune.errors import GenerationWarning, SettingsError
from stat_prune.families import find_blocks
from stat_prune.surgery.alignment import renumber_alignment_heads

PAIRS = [[0, 3], [1, 2], [1, 3]]


def whisper(pairs: list[list[int]] | None = PAIRS) -> Any:
    torch.manual_seed(0)
    sizes = {
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = transformers.WhisperConfig(
        vocab_size=64,
        num_mel_bins=8,
        d_model=32,
        max_source_positions=30,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=4,
        init_std=0.25,
        **sizes,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    values = {"alignment_heads": pairs, "no_timestamps_token_id": 40}
    values |= {"suppress_tokens": None, "begin_suppress_tokens": None}
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    return model


def test_word_timestamps_of_a_pruned_whisper_are_read_from_the_heads_that_they_were(tmp_path):
    model = whisper()
    generator = torch.Generator().manual_seed(0)
    data = [
        {
            "input_features": torch.randn(8, 60, generator=generator),
            "labels": torch.randint(5, 20, (12,), generator=generator),
        }
        for _ in range(40)
    ]
    result = stat_prune.prune(model, data, target=stat_prune.MACs(0.7), progress=False)
    kept = {i: result.plan[f"decoder.layers.{i}.cross_heads"] for i in (0, 1)}
    expected = [[i, kept[i].index(head)] for i, head in PAIRS if head in kept[i]]
    assert result.model.generation_config.alignment_heads == expected
    assert expected and expected != PAIRS
    assert model.generation_config.alignment_heads == PAIRS
    result.save(tmp_path / "out")
    how = {"return_token_timestamps": True, "return_timestamps": True, "max_new_tokens": 6}
    sound = torch.randn(1, 8, 60, generator=generator)
    for one in (result.model, stat_prune.load(tmp_path / "out")):
        assert one.generation_config.alignment_heads == expected
        found = one.generate(sound, **how, return_dict_in_generate=True)
        assert "token_timestamps" in found["segments"][0][0]["result"]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, PAIRS),
        ({0: [0, 3]}, [[0, 1], [1, 2], [1, 3]]),
        ({0: [0, 1], 1: [1, 3]}, [[1, 1]]),
        ({0: [], 1: [2, 3]}, [[1, 0], [1, 1]]),
        ({0: [0], 1: [0]}, []),
    ],
    ids=str,
)
def test_entries_of_heads_that_left_go_and_others_get_their_new_place(kept, expected):
    model = whisper()
    names = {f"decoder.layers.{layer}.cross_heads": units for layer, units in kept.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renumber_alignment_heads(model, find_blocks(model), names)
    assert model.generation_config.alignment_heads == expected
    assert [one.category for one in caught] == ([] if expected else [GenerationWarning])


@pytest.mark.parametrize("model_class", ["BertForMultipleChoice", "GPT2DoubleHeadsModel"])
def test_heads_that_compare_texts_are_refused_with_what_works(model_class):
    torch.manual_seed(0)
    model = {
        "BertForMultipleChoice": lambda: transformers.BertForMultipleChoice(
            transformers.BertConfig(
                vocab_size=64,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
            )
        ),
        "GPT2DoubleHeadsModel": lambda: transformers.GPT2DoubleHeadsModel(
            transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
        ),
    }[model_class]().eval()
    data = [{"input_ids": torch.randint(0, 64, (2, 20))} for _ in range(40)]
    for options in ({}, {"method": "id-unweighted", "passes": 2}):
        with pytest.raises(SettingsError, match=f'{model_class}.*objective="hidden-states"'):
            stat_prune.prune(model, data, target=stat_prune.MACs(0.6), progress=False, **options)
    for options in (
        {"objective": "hidden-states", "effort": "fast"},  # holds no example out
        {"method": "magnitude"},
    ):
        report = stat_prune.prune(
            model, data, target=stat_prune.MACs(0.6), progress=False, **options
        ).report
        assert report.settings["calibration_samples"] == 80
        assert report.after.block_macs < report.before.block_macs
