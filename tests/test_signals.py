"""Images, sounds and decoder inputs among the examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from stat_prune.data.batching import num_sequences, padded, unpadded
from stat_prune.data.token_rows import without_padding
from stat_prune.errors import DataError
from stat_prune.examples.iterating import iterate_examples

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "dataset",
    [
        [{"pixel_values": image} for image in IMAGES],
        [{"pixel_values": image.numpy(), "label": 1} for image in IMAGES],
        [{"pixel_values": image.tolist()} for image in IMAGES],
        [{"pixel_values": [image]} for image in IMAGES],
        [{"pixel_values": IMAGES[:4]}, {"pixel_values": IMAGES[4:]}],
        {"pixel_values": IMAGES.double()},
        DataLoader([{"pixel_values": image} for image in IMAGES], batch_size=4),
    ],
    ids=["rows", "arrays", "lists", "batches of one", "batches", "one batch", "loader"],
)
def test_every_form_of_a_dataset_gives_the_same_images(dataset):
    images = [row["pixel_values"] for row in iterate_examples(dataset, seed=0)]
    assert all(image.dtype == torch.float32 for image in images)
    found = torch.stack(sorted(images, key=lambda image: float(image.sum())))
    expected = torch.stack(sorted(IMAGES, key=lambda image: float(image.sum())))
    assert torch.equal(found, expected)


def test_padded_rows_come_apart_as_they_were():
    rows = [
        {
            "input_ids": torch.arange(1, 1 + length),
            "attention_mask": torch.ones(length, dtype=torch.int64),
            "decoder_input_ids": torch.arange(5, 12 - length),
            "decoder_attention_mask": torch.ones(7 - length, dtype=torch.int64),
            "input_features": torch.full((2, 3), float(length)),
        }
        for length in (2, 5, 3)
    ]
    batch = padded(rows, pad_token_id=9)
    assert num_sequences(batch) == 3
    assert batch["input_ids"][0].tolist() == [1, 2, 9, 9, 9]
    assert batch["decoder_input_ids"][1].tolist() == [5, 6, 9, 9, 9]
    assert batch["decoder_attention_mask"].sum(1).tolist() == [5, 2, 4]
    for index, row in enumerate(rows):
        again = unpadded(batch, index)
        assert row.keys() == again.keys()
        assert all(torch.equal(row[name], again[name]) for name in row)


def test_padding_of_a_decoder_is_cut_by_its_own_mask():
    row = {
        "input_ids": torch.tensor([0, 7, 8, 9]),
        "attention_mask": torch.tensor([0, 1, 1, 1]),
        "decoder_input_ids": torch.tensor([4, 5, 0]),
        "decoder_attention_mask": torch.tensor([1, 1, 0]),
    }
    cut = without_padding(row, limit=2)
    assert cut is not None
    assert cut["input_ids"].tolist() == [7, 8]
    assert cut["decoder_input_ids"].tolist() == [4, 5]


@pytest.mark.parametrize("labels", [[[7, 8, -100], [9, -100, -100]], np.array([[7, 8], [9, -100]])])
def test_labels_that_are_sequences_are_what_a_decoder_is_to_write(labels):
    batch = {"input_ids": [[2, 3], [4, 5]], "labels": labels}
    targets = sorted(row["target_ids"].tolist() for row in iterate_examples(batch, seed=0))
    assert targets == [[7, 8], [9]]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"pixel_values": torch.zeros(8, 8)}, "3 dimensions an example"),
        ({"pixel_values": torch.zeros(3, 8, 8, dtype=torch.uint8)}, "floating point"),
        ({"pixel_values": IMAGES[:2], "input_ids": [[1, 2]]}, "different numbers of examples"),
    ],
)
def test_malformed_signals_are_refused(example, message):
    with pytest.raises(DataError, match=message):
        list(iterate_examples([example], seed=0))


def test_images_of_different_sizes_are_refused():
    rows = [{"pixel_values": torch.zeros(3, size, size)} for size in (8, 16)]
    with pytest.raises(DataError, match="differ in size"):
        padded(rows, 0)
