from __future__ import annotations

import json
import random
import warnings

import datasets
import pytest
import torch
from tiny_models import tiny_bert
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from stat_prune.data.batching import token_mask
from stat_prune.data.calibration import CalibrationSet, build_calibration_set
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.errors import CalibrationWarning, DataError

TEXTS = [
    "the cat sat on the mat",
    "a dog ran",
    "the bird flew over the house and then under a tree",
    "it was a very very very old cat",
    "the dog sat",
]


def sequences(calibration: CalibrationSet) -> list[tuple[int, ...]]:
    """The real tokens of each row, as a sorted list."""
    return sorted(
        tuple(ids[mask].tolist())
        for batch in calibration.batches
        for ids, mask in zip(batch["input_ids"], token_mask(batch), strict=True)
    )


def expected(tokenizer: PreTrainedTokenizerFast, texts: list) -> list[tuple[int, ...]]:
    encode = [tokenizer(*text) if isinstance(text, tuple) else tokenizer(text) for text in texts]
    return sorted(tuple(row["input_ids"]) for row in encode)


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path, word_tokenizer):
    """The same five texts in each form that a dataset may have."""
    rows = [{**word_tokenizer(text), "labels": 1} for text in TEXTS]
    match request.param:
        case "list":
            return TEXTS
        case "dataset":
            return datasets.Dataset.from_dict({"idx": range(5), "sentence": TEXTS})
        case "tokenized dataset":
            return datasets.Dataset.from_list(rows)
        case "dataset of splits":
            part = datasets.Dataset.from_dict({"text": TEXTS})
            return datasets.DatasetDict(test=part.select([0]), train=part)
        case "stream":
            return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
        case "data loader":
            return DataLoader(
                rows,
                batch_size=2,
                collate_fn=lambda part: word_tokenizer.pad(part, return_tensors="pt"),
            )
        case "one batch":
            return word_tokenizer(TEXTS, padding=True, return_tensors="pt")
        case "left-padded batch":
            return word_tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
        case "generator of token ids":
            return (row["input_ids"] for row in rows)
        case "list of tensors":
            return [torch.tensor([row["input_ids"]]) for row in rows]
        case "text file":
            path = tmp_path / "texts.txt"
            path.write_text("\n\n".join(TEXTS) + "\n")
            return path
        case "JSONL file":
            path = tmp_path / "texts.jsonl"
            path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
            return str(path)
        case "JSON file":
            path = tmp_path / "texts.json"
            path.write_text(json.dumps(TEXTS))
            return str(path)
        case "TSV file":
            path = tmp_path / "texts.tsv"
            path.write_text("\n".join(["sentence\tlabel", *(f"{text}\t0" for text in TEXTS)]))
            return str(path)
        case "dataset folder":
            datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
            return str(tmp_path / "saved")


SOURCES = [
    "list",
    "dataset",
    "tokenized dataset",
    "dataset of splits",
    "stream",
    "data loader",
    "one batch",
    "left-padded batch",
    "generator of token ids",
    "list of tensors",
    "text file",
    "JSONL file",
    "JSON file",
    "TSV file",
    "dataset folder",
]


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_every_form_of_dataset_gives_the_same_sequences(source, word_tokenizer):
    calibration = build_calibration_set(source, tokenizer=word_tokenizer, batch_size=2)

    assert sequences(calibration) == expected(word_tokenizer, TEXTS)
    assert calibration.num_samples == len(TEXTS)
    assert calibration.num_tokens == sum(len(word_tokenizer(t)["input_ids"]) for t in TEXTS)
    assert calibration.mean_length == calibration.num_tokens / len(TEXTS)


@pytest.mark.parametrize(
    "columns",
    [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "context")],
)
def test_columns_of_two_texts_become_pairs_with_token_types(columns, word_tokenizer):
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    data = datasets.Dataset.from_list([dict(zip(columns, pair, strict=True)) for pair in pairs])

    calibration = build_calibration_set(data, tokenizer=word_tokenizer)

    assert sequences(calibration) == expected(word_tokenizer, pairs)
    assert sequences(build_calibration_set(pairs, tokenizer=word_tokenizer)) == sequences(
        calibration
    )
    for batch in calibration.batches:
        second = batch["token_type_ids"].bool()
        assert second.any()
        assert not second[~token_mask(batch)].any()


def test_a_model_sees_the_same_tokens_whatever_the_batch_size(word_tokenizer):
    model = tiny_bert()

    def hidden_states(batch_size: int) -> torch.Tensor:
        calibration = build_calibration_set(TEXTS, tokenizer=word_tokenizer, batch_size=batch_size)
        with torch.no_grad():
            states = [
                model(**batch).last_hidden_state[token_mask(batch)] for batch in calibration.batches
            ]
        return torch.cat(states)

    torch.testing.assert_close(hidden_states(1), hidden_states(5), rtol=0, atol=2e-6)


def test_order_and_batching_leave_no_trace_in_fingerprint_and_rows(word_tokenizer):
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))

    first = build_calibration_set(TEXTS, tokenizer=word_tokenizer, batch_size=2)
    second = build_calibration_set(shuffled, tokenizer=word_tokenizer, batch_size=2, seed=7)
    third = build_calibration_set(shuffled, tokenizer=word_tokenizer, batch_size=3)

    assert first.fingerprint == second.fingerprint == third.fingerprint
    for ours, theirs in zip(first.batches, second.batches, strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name])
    changed = build_calibration_set([*TEXTS[:-1], "a cat"], tokenizer=word_tokenizer)
    assert changed.fingerprint != first.fingerprint


def test_the_seed_alone_decides_which_examples_are_drawn(word_tokenizer):
    texts = [f"the {'very ' * (i % 40)}cat {'sat ' * (i // 40)}" for i in range(200)]

    def draw(seed: int) -> CalibrationSet:
        return build_calibration_set(texts, tokenizer=word_tokenizer, num_samples=20, seed=seed)

    assert draw(0).num_samples == 20
    assert draw(0).fingerprint == draw(0).fingerprint
    assert draw(0).fingerprint != draw(1).fingerprint


def test_examples_are_cut_to_the_smallest_of_all_length_limits(word_tokenizer):
    long = ["the cat " * 100]
    ids = [{"input_ids": torch.arange(60)}]

    def length(data, **limits) -> int:
        return build_calibration_set(data, tokenizer=word_tokenizer, **limits).num_tokens

    assert length(long) == word_tokenizer.model_max_length
    assert length(long, max_positions=16) == 16
    assert length(long, max_seq_length=8, max_positions=16) == 8
    assert length(ids) == 60
    assert length(ids, max_positions=16) == 16


def test_without_pad_token_padding_takes_a_valid_id_and_is_masked(word_tokenizer):
    # [PAD] has an id that the model has no embedding for
    calibration = build_calibration_set(
        [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], vocab_size=10, pad_token_id=50
    )
    (batch,) = calibration.batches
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["input_ids"].max() < 10
    assert calibration.num_tokens == 4


def test_subset_is_spread_over_the_lengths_and_repeats_with_its_seed():
    rows = [{"input_ids": torch.full((length,), 1)} for length in range(1, 101)]
    calibration = build_calibration_set(rows, batch_size=7)

    part = calibration.subset(10, seed=3, batch_size=4)

    lengths = sorted(int(n) for batch in part.batches for n in batch["attention_mask"].sum(1))
    # one from each tenth of the lengths
    assert [(length - 1) // 10 for length in lengths] == list(range(10))
    assert [len(batch["input_ids"]) for batch in part.batches] == [4, 4, 2]
    assert part.fingerprint == calibration.subset(10, seed=3).fingerprint
    assert part.fingerprint != calibration.subset(10, seed=4).fingerprint
    assert calibration.subset(1000, seed=0).fingerprint == calibration.fingerprint


def test_a_subset_is_cut_on_the_right():
    rows = [{"input_ids": torch.arange(length)} for length in range(1, 11)]
    calibration = build_calibration_set(rows)

    part = calibration.subset(10, seed=0, max_length=4)

    (batch,) = part.batches
    assert batch["attention_mask"].sum(1).tolist() == [4] * 7 + [3, 2, 1]
    assert batch["input_ids"][:4].tolist() == [[0, 1, 2, 3]] * 4


@pytest.mark.parametrize("empty", [[], ["", "   "], iter(())], ids=["list", "blanks", "iterator"])
def test_an_empty_dataset_is_refused(empty, word_tokenizer):
    with pytest.raises(DataError, match="empty"):
        build_calibration_set(empty, tokenizer=word_tokenizer)


def test_a_dataset_of_padding_only_is_refused():
    batch = {"input_ids": torch.ones(3, 4), "attention_mask": torch.zeros(3, 4)}
    batch = {name: value.long() for name, value in batch.items()}
    with pytest.raises(DataError, match="only padding: none of 3 examples"):
        build_calibration_set([batch])


def test_texts_without_tokenizer_are_refused():
    with pytest.raises(DataError, match="no tokenizer"):
        build_calibration_set(TEXTS)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(word_tokenizer):
    with pytest.raises(DataError, match=r"Token id \d+ is outside .* vocabulary of 8"):
        build_calibration_set(TEXTS, tokenizer=word_tokenizer, vocab_size=8)


def test_a_tokenizer_that_seems_to_be_another_models_is_told_of(word_tokenizer):
    few = len(word_tokenizer)
    with pytest.warns(CalibrationWarning, match=rf"has {few} tokens.*embeddings for 3,000"):
        calibration_set_for(tiny_bert(vocab_size=3000), TEXTS, word_tokenizer)


@pytest.mark.parametrize("unused", [0, 1000])
def test_rows_that_fill_up_embeddings_are_no_matter(unused, word_tokenizer):
    model = tiny_bert(vocab_size=len(word_tokenizer) + unused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibration_set_for(model, TEXTS, word_tokenizer)


def test_a_dataset_without_text_column_names_its_columns(word_tokenizer):
    data = datasets.Dataset.from_dict({"label": [0], "headline": ["a cat"]})
    with pytest.raises(DataError, match=r"\['headline', 'label'\]"):
        build_calibration_set(data, tokenizer=word_tokenizer)


@pytest.mark.parametrize("name", ["glue/no-such-config", "no-such-dataset", "no/such/dataset"])
def test_an_unknown_name_says_what_works_without_the_hub(name, word_tokenizer):
    with pytest.raises(DataError, match=f"'{name}'.*Without access to the Hub"):
        build_calibration_set(name, tokenizer=word_tokenizer)


@pytest.mark.parametrize("name", ["texts.txt", "data/texts.jsonl", "/nowhere/texts"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name, word_tokenizer):
    with pytest.raises(DataError, match=f"no file {name}"):
        build_calibration_set(name, tokenizer=word_tokenizer)


def test_a_name_with_a_slash_is_a_dataset_and_its_configuration(monkeypatch, word_tokenizer):
    calls = []

    def load_dataset(*names):
        calls.append(names)
        return datasets.DatasetDict(train=datasets.Dataset.from_dict({"sentence": TEXTS}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    calibration = build_calibration_set("glue/sst2", tokenizer=word_tokenizer)
    build_calibration_set("imdb", tokenizer=word_tokenizer)
    build_calibration_set("nyu-mll/glue/sst2", tokenizer=word_tokenizer)

    assert sequences(calibration) == expected(word_tokenizer, TEXTS)
    assert calls == [("glue", "sst2"), ("imdb",), ("nyu-mll/glue", "sst2")]


@pytest.mark.parametrize(
    "wrong",
    [
        [{"input_ids": [[1, 2], [3]]}],
        [{"input_ids": [1.5, 2.5]}],
        [{"input_ids": [1, 2], "attention_mask": [1]}],
        [3],
        3,
    ],
    ids=["ragged batch", "floats", "mask of another length", "number in a list", "number"],
)
def test_malformed_examples_are_refused(wrong):
    with pytest.raises(DataError):
        build_calibration_set(wrong)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "max_seq_length"])
def test_sizes_below_one_are_refused_by_name(name, word_tokenizer):
    with pytest.raises(DataError, match=f"{name} must be at least 1, got 0"):
        build_calibration_set(TEXTS, tokenizer=word_tokenizer, **{name: 0})


def test_a_split_parts_the_sequences():
    rows = [{"input_ids": torch.arange(1, 3 + index)} for index in range(20)]
    whole = build_calibration_set(rows, batch_size=6)
    rest, held_out = whole.split(5, seed=1)
    assert (rest.num_samples, held_out.num_samples) == (15, 5)
    assert sorted(sequences(rest) + sequences(held_out)) == sequences(whole)
    assert whole.split(5, seed=1)[1].fingerprint == held_out.fingerprint
    with pytest.raises(DataError, match="held out"):
        whole.split(20, seed=1)
