"""What probes are measured on: enough values, and no more of the time in a deeper model."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import BertForQuestionAnswering, BertForSequenceClassification

from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import positions_per_sequence
from stat_prune.pipeline.foreseeing.peak_memory import Reading
from stat_prune.pipeline.run import MIN_PROBE_LENGTH, MIN_PROBE_SEQUENCES, start_run
from stat_prune.settings.settings import Settings


def rows(count: int, length: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 40, (count, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row} for row in ids]


def probed(model, data) -> list[int]:
    """The lengths of the sequences that each probe is measured on."""
    with start_run(model, data, None, Settings(progress=False)) as run:
        values = positions_per_sequence(model, run.calibration.batches[0], output_distance)
        batches = run.probe_batches(values)
        reading = Reading.of(run)
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    assert (len(lengths), max(lengths)) == (reading.num_probe_samples, reading.probe_length)
    return lengths


@pytest.mark.parametrize("layers", [4, 8, 16])
def test_probes_of_long_texts_take_half_a_pass_whatever_the_depth(layers):
    data = rows(60, 200)
    lengths = probed(tiny_llama(num_hidden_layers=layers, max_position_embeddings=256), data)
    num_probes, mean_share_of_layers = 2 * layers, 0.5
    passes = num_probes * mean_share_of_layers * sum(lengths) / (60 * 200)
    assert len(lengths) == MIN_PROBE_SEQUENCES
    assert passes <= 0.5 or set(lengths) == {MIN_PROBE_LENGTH}
    assert passes > 0.45


def test_probes_are_batched_to_as_many_tokens_as_calibration():
    model = tiny_llama(num_hidden_layers=8, max_position_embeddings=256)
    data = rows(20, 200)
    with start_run(model, data, None, Settings(batch_size=2, progress=False)) as run:
        shapes = [tuple(batch["input_ids"].shape) for batch in run.probe_batches(200.0)]
    # Two of 200 tokens at a time: six of 64.
    assert shapes == [(6, MIN_PROBE_LENGTH), (4, MIN_PROBE_LENGTH)]


def test_texts_that_can_be_afforded_are_read_whole():
    assert set(probed(tiny_llama(max_position_embeddings=128), rows(100, 100))) == {100}


def test_short_texts_are_read_whole_whatever_they_cost():
    assert set(probed(tiny_llama(num_hidden_layers=8), rows(12, 30))) == {30}


@pytest.mark.parametrize("head", [BertForSequenceClassification, BertForQuestionAnswering])
def test_texts_are_not_cut_where_the_output_is_of_the_whole(head):
    model = tiny_bert(head, num_hidden_layers=8, max_position_embeddings=128)
    assert set(probed(model, rows(12, 100))) == {100}
