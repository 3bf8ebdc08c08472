"""Labels stay with their examples, and change nothing but for methods that ask for them."""

from __future__ import annotations

import datasets
import pytest
import torch
from tiny_models import tiny_bert
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

import stat_prune
from stat_prune import MACs
from stat_prune.data.calibration import CalibrationSet, build_calibration_set

TEXTS = ["the cat sat on the mat", "a dog ran", "the bird flew over the house", "it was a tree"]
LABELS = [3, 1, 4, 2]


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path, word_tokenizer):
    records = [{"sentence": t, "label": n} for t, n in zip(TEXTS, LABELS, strict=True)]
    rows = [{**word_tokenizer(t), "labels": n} for t, n in zip(TEXTS, LABELS, strict=True)]
    match request.param:
        case "records":
            return records
        case "dataset":
            return datasets.Dataset.from_list(records)
        case "stream":
            return datasets.Dataset.from_list(records).to_iterable_dataset()
        case "tokenized dataset":
            return datasets.Dataset.from_list(rows).with_format("torch")
        case "data loader":
            return DataLoader(
                rows,
                batch_size=3,
                collate_fn=lambda part: word_tokenizer.pad(part, return_tensors="pt"),
            )
        case "one batch":
            batch = word_tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
            return {**batch, "labels": torch.tensor(LABELS)}
        case "TSV file":
            path = tmp_path / "texts.tsv"
            lines = [f"{record['sentence']}\t{record['label']}" for record in records]
            path.write_text("\n".join(["sentence\tlabel", *lines]))
            return path


SOURCES = [
    "records",
    "dataset",
    "stream",
    "tokenized dataset",
    "data loader",
    "one batch",
    "TSV file",
]


def label_of(calibration: CalibrationSet) -> dict[tuple[int, ...], float]:
    """Labels by the real tokens of their rows."""
    return {
        tuple(ids[mask.bool()].tolist()): label.item()
        for batch in calibration.batches
        for ids, mask, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        )
    }


@pytest.mark.parametrize("source", SOURCES, indirect=True)
def test_every_form_of_dataset_keeps_each_label_with_its_text(source, word_tokenizer):
    calibration = build_calibration_set(source, tokenizer=word_tokenizer, batch_size=3)

    tokens = [tuple(word_tokenizer(text)["input_ids"]) for text in TEXTS]
    assert label_of(calibration) == dict(zip(tokens, LABELS, strict=True))
    assert label_of(calibration.subset(4, seed=0, batch_size=1)) == label_of(calibration)
    plain = build_calibration_set(TEXTS, tokenizer=word_tokenizer)
    assert calibration.fingerprint == plain.fingerprint


def test_scores_stay_with_their_pairs(word_tokenizer):
    scores = [0.5, 0.25]
    records = [
        {"sentence1": first, "sentence2": second, "label": score}
        for first, second, score in zip(TEXTS[:2], TEXTS[2:], scores, strict=True)
    ]
    (batch,) = build_calibration_set(records, tokenizer=word_tokenizer).batches
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == scores  # the first pair is the longer one


@pytest.mark.parametrize(
    "record",
    [
        {"sentence": "a cat", "label": "entailment"},
        {"sentence": "a cat", "label": [1, 2]},
        {"sentence": "a cat", "label": None},
        {"input_ids": [2, 5, 3], "labels": [0, 1, 0]},
        {"input_ids": [5], "labels": [1]},
        {"input_ids": torch.tensor([[2, 5, 3]]), "labels": torch.tensor([[0, 1, 0]])},
    ],
    ids=["a name", "several", "none", "one a token", "one token", "a batch of one a token"],
)
def test_what_is_not_one_number_an_example_is_left_behind(record, word_tokenizer):
    (batch,) = build_calibration_set([record], tokenizer=word_tokenizer).batches
    assert "labels" not in batch


@pytest.mark.parametrize("num_labels", [1, 2])
def test_the_default_method_gives_the_same_bits_with_and_without_labels(num_labels, word_tokenizer):
    model = tiny_bert(BertForSequenceClassification, num_labels=num_labels)
    texts = TEXTS * 5
    # Not classes of this model: a loss computed from them would fail.
    records = [{"sentence": text, "label": 7} for text in texts]

    plain, labelled = (
        stat_prune.prune(
            model, data, target=MACs(0.5), tokenizer=word_tokenizer, seed=1, progress=False
        )
        for data in (texts, records)
    )

    assert labelled.plan == plain.plan
    assert labelled.report.settings == plain.report.settings
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(labelled.model.state_dict()[name], weight), name
