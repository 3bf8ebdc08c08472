"""Masked language models are calibrated on what they read in use: texts with masks."""

from __future__ import annotations

import json
import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_bert
from transformers import BertForMaskedLM, BertForSequenceClassification

import stat_prune
from stat_prune.data.masking import Masking
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import CalibrationWarning, SettingsError
from stat_prune.measuring.distillation import logit_distance
from stat_prune.measuring.objectives import output_distance

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then".split()
MASK = 30


@pytest.fixture(scope="module")
def tokenizer(word_tokenizer):
    """The one of words, with a mask."""
    from copy import deepcopy

    tokenizer = deepcopy(word_tokenizer)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return tokenizer


@pytest.fixture(scope="module")
def texts():
    source = random.Random(0)
    return [" ".join(source.choices(WORDS, k=source.randint(1, 30))) for _ in range(60)]


def read(model, data, tokenizer, **options):
    return calibration_set_for(model, data, tokenizer, **({"mask_fraction": 0.15} | options))


def rows_of(calibration):
    return calibration._rows(range(calibration.num_samples))


@settings(deadline=None, max_examples=50)
@given(
    ids=st.lists(st.integers(0, 29), min_size=1, max_size=60),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
)
def test_a_fraction_of_the_words_is_masked_at_least_one_and_nothing_else_changes(
    ids, fraction, seed
):
    masking = Masking(MASK, frozenset({0, 1, 2, MASK}), fraction, seed)
    row = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)).long()}
    row["attention_mask"][0] = 0
    (found,) = masking([row])
    words = (row["input_ids"] > 2) & row["attention_mask"].bool()
    masked = found["input_ids"] == MASK
    expected = max(round(fraction * int(words.sum())), 1) if bool(words.any()) else 0
    assert int(masked.sum()) == expected
    assert not bool((masked & ~words).any())
    assert torch.equal(found["input_ids"][~masked], row["input_ids"][~masked])
    assert torch.equal(masking([row])[0]["input_ids"], found["input_ids"])


def test_texts_of_a_model_for_masked_tokens_get_masks_and_those_of_others_do_not(texts, tokenizer):
    masked = read(tiny_bert(BertForMaskedLM), texts, tokenizer)
    ids = torch.cat([row["input_ids"] for row in rows_of(masked)])
    assert masked.num_masked == int((ids == tokenizer.mask_token_id).sum())
    assert 0.13 < masked.num_masked / (masked.num_tokens - 2 * masked.num_samples) < 0.2
    for model, options in (
        (tiny_bert(BertForSequenceClassification), {}),
        (tiny_bert(), {}),
        (tiny_bert(BertForMaskedLM), {"mask_fraction": 0.0}),
    ):
        plain = read(model, texts, tokenizer, **options)
        assert plain.num_masked == 0
        assert plain.num_tokens == masked.num_tokens


def test_neither_order_nor_batches_nor_other_texts_decide_what_is_masked(texts, tokenizer):
    model = tiny_bert(BertForMaskedLM)
    known = read(model, texts, tokenizer)
    other_order = read(model, texts[::-1], tokenizer, batch_size=3)
    assert other_order.fingerprint == known.fingerprint
    fewer = read(model, texts[:20], tokenizer)
    known_rows = {tuple(row["input_ids"].tolist()) for row in rows_of(known)}
    assert {tuple(row["input_ids"].tolist()) for row in rows_of(fewer)} <= known_rows
    assert read(model, texts, tokenizer, seed=1).fingerprint != known.fingerprint


def test_token_ids_are_masked_as_the_texts_they_are_of(texts, tokenizer):
    model = tiny_bert(BertForMaskedLM)
    encoded = [{**tokenizer(text)} for text in texts]
    assert read(model, encoded, tokenizer).fingerprint == read(model, texts, tokenizer).fingerprint


def test_data_with_masks_is_left_as_it_is(texts, tokenizer):
    model = tiny_bert(BertForMaskedLM)
    data = [*texts[:-1], "the [MASK] sat on a tree"]
    found, plain = (
        read(model, data, tokenizer, mask_fraction=fraction) for fraction in (0.15, 0.0)
    )
    assert found.fingerprint == plain.fingerprint
    assert found.num_masked == 1


def prune(model, data, tokenizer, **options):
    options = {"target": stat_prune.MACs(0.6), "progress": False} | options
    return stat_prune.prune(model, data, tokenizer=tokenizer, **options)


def test_the_report_says_how_many_tokens_were_masked(texts, tokenizer):
    report = prune(tiny_bert(BertForMaskedLM), texts, tokenizer).report
    count = report.settings["calibration_masked_tokens"]
    assert count > 0
    assert report.settings["mask_fraction"] == 0.15
    assert f"{count} of them masked" in " ".join(str(report).split())
    plain = prune(tiny_bert(BertForMaskedLM), texts, tokenizer, mask_fraction=0).report
    assert plain.settings["calibration_masked_tokens"] == 0 and "masked" not in str(plain)


def test_hidden_states_are_measured_on_texts_as_they_are(texts, tokenizer):
    model = tiny_bert(BertForMaskedLM)
    found = prune(model, texts, tokenizer, objective="pooled")
    assert found.report.settings["calibration_masked_tokens"] == 0
    assert prune(model.bert, texts, tokenizer, objective="pooled").plan == found.plan


@pytest.mark.parametrize("which", ["none", "without a mask", "mask beyond the vocabulary"])
def test_where_no_mask_is_known_a_warning_says_so(which, texts, tokenizer, word_tokenizer):
    model = tiny_bert(BertForMaskedLM)
    given = {"none": None, "without a mask": word_tokenizer}.get(which, tokenizer)
    if given is tokenizer:
        model.resize_token_embeddings(tokenizer.mask_token_id)
    data = [{**word_tokenizer(text)} for text in texts]
    with pytest.warns(CalibrationWarning, match="predicts masked tokens, but with (no|a) tok"):
        assert read(model, data, given).num_masked == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(model, data, given, mask_fraction=0.0).num_masked == 0


def test_layer_by_layer_reads_the_same_masks_and_so_does_a_family(texts, tokenizer, tmp_path):
    model = tiny_bert(BertForMaskedLM)
    model.save_pretrained(tmp_path / "dense")
    whole = prune(model, texts, tokenizer)
    (of_family,) = stat_prune.prune_family(
        model, texts, tokenizer=tokenizer, targets=[stat_prune.MACs(0.6)], progress=False
    )
    by_layer = stat_prune.prune_checkpoint(
        tmp_path / "dense",
        texts,
        tokenizer=tokenizer,
        target=stat_prune.MACs(0.6),
        output_dir=tmp_path / "out",
        progress=False,
    )
    for other in (of_family, by_layer):
        assert other.plan == whole.plan
        for name in ("calibration_fingerprint", "calibration_masked_tokens"):
            assert other.report.settings[name] == whole.report.settings[name]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.1", None, True])
def test_a_fraction_that_is_none_is_refused(value, texts, tokenizer):
    with pytest.raises(SettingsError, match="mask_fraction.*got"):
        prune(tiny_bert(BertForMaskedLM), texts, tokenizer, mask_fraction=value)


@pytest.mark.realdata
def test_masks_in_the_calibration_set_keep_more_of_a_real_model(real_data):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = real_data / "models" / "rxnmapper-albert"
    reactions = json.loads((real_data / "data" / "reactions" / "reactions.json").read_text())
    random.Random(0).shuffle(reactions)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    special = torch.tensor(tokenizer.all_special_ids)
    batch = tokenizer(
        reactions[600:660], return_tensors="pt", padding=True, truncation=True, max_length=512
    )
    ids = batch["input_ids"]
    masked = torch.rand(ids.shape, generator=generator) < 0.15
    masked &= batch["attention_mask"].bool() & ~torch.isin(ids, special)
    batch["input_ids"] = ids.masked_fill(masked, tokenizer.mask_token_id)

    def accuracy(fraction):
        result = prune(
            model,
            reactions[:600],
            tokenizer,
            target=stat_prune.MACs(0.8),
            num_calibration_samples=128,
            mask_fraction=fraction,
            effort="fast",
        )
        with torch.no_grad():
            found = result.model(**batch).logits.argmax(-1)
        return float((found == ids)[masked].double().mean())

    assert accuracy(0.15) > accuracy(0.0) + 0.02


def test_what_is_preserved_is_what_is_predicted(texts, tokenizer):
    """A divergence counts at masks, and where nothing is masked at every token."""
    calibration = read(tiny_bert(BertForMaskedLM), texts, tokenizer)
    batch = calibration.batches[0]
    generator = torch.Generator().manual_seed(0)
    shape = (*batch["input_ids"].shape, 40)
    dense, pruned = ({"logits": torch.randn(shape, generator=generator)} for _ in range(2))
    found = output_distance(dense, pruned, batch)
    plain = {name: value for name, value in batch.items() if name != "masked_tokens"}
    everywhere = output_distance(dense, pruned, plain)
    masked = (batch["input_ids"] == tokenizer.mask_token_id)[batch["attention_mask"].bool()]
    assert 0 < int(masked.sum()) < len(masked)
    assert torch.equal(found, everywhere * masked)
    # All tokens teach.
    assert logit_distance(pruned, dense, batch, 1.0) == everywhere.mean().float()


def test_masks_that_are_there_are_what_is_predicted(texts, tokenizer):
    rows = [dict(tokenizer(f"{text} {tokenizer.mask_token}")) for text in texts]
    for batch in read(tiny_bert(BertForMaskedLM), rows, tokenizer).batches:
        assert torch.equal(
            batch["masked_tokens"].bool(), batch["input_ids"] == tokenizer.mask_token_id
        )
        assert int(batch["masked_tokens"].sum()) == len(batch["input_ids"])
