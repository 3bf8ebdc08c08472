"""Whole pruned models, measured on shared weights, are as far away as really pruned copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from families import Family, examples

from stat_prune.choosing.budget import whole_model
from stat_prune.choosing.budget.whole_model import WholeModel
from stat_prune.choosing.correction import fold
from stat_prune.data.calibration import CalibrationSet, build_calibration_set
from stat_prune.data.completion import Completion
from stat_prune.families import find_blocks, transformer_layers
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.statistics import statistics_of
from stat_prune.model.dispatched import to_cut
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.surgery.cut import apply, pruned_copy

#: Of each block three candidates: its first half, its second half, or all of it.
FIRST, SECOND, ALL = range(3)


@dataclass
class Subject:
    """A model with what is to be measured of it."""

    model: torch.nn.Module
    calibration: CalibrationSet
    folded: list[list[FoldedConsumer]]

    def whole(self) -> WholeModel:
        return WholeModel(
            self.model,
            [candidates[0].block.layer for candidates in self.folded],
            self.cut,
            self.calibration.batches,
            output_distance,
            parts=4,
        )

    def cut(self, choice) -> torch.nn.Module:
        return pruned_copy(
            self.model, [of[index] for of, index in zip(self.folded, choice, strict=True)]
        )

    def only(self, layers, index: int) -> list[int]:
        """The choice that prunes some layers and leaves the others."""
        return [index if one[0].block.layer in layers else ALL for one in self.folded]


@pytest.fixture(scope="module")
def subjects(word_salads, word_tokenizer) -> Callable[[Family], Subject]:
    """`subject`, made once a family."""
    made: dict[str, Subject] = {}

    def of(family: Family) -> Subject:
        if family.label not in made:
            made[family.label] = subject_of(family, word_salads, word_tokenizer)
        return made[family.label]

    return of


@pytest.fixture
def subject(family: Family, subjects) -> Subject:
    """A model that is left as it was."""
    return subjects(family)


def subject_of(family: Family, word_salads, word_tokenizer) -> Subject:
    model = family.build(family.heads[-1])
    calibration = build_calibration_set(
        examples(model, word_salads[:24], word_tokenizer),
        tokenizer=word_tokenizer,
        batch_size=10,
        complete=Completion(model),
    )
    blocks = [block for block in find_blocks(model) if not block.fixed]
    moments = collect_moments(model, blocks, calibration.batches)
    folded = []
    for one in statistics_of(model.base_model, blocks, moments):
        count = one.block.num_units
        halves = (0, max(count // 2, 1)), (count // 2, count), (0, count)
        folded.append([fold(one, torch.arange(*half)) for half in halves])
    return Subject(model, calibration, folded)


def never(_found, _current) -> bool:
    return False


def test_the_distance_is_that_of_a_really_pruned_copy(subject: Subject):
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    whole, layers = subject.whole(), len(transformer_layers(subject.model))
    choices = ([FIRST] * len(subject.folded), subject.only({layers - 1}, SECOND))
    for choice in choices:
        found = whole.measure(choice)
        with to_cut(subject.model) as pruned:
            apply(pruned, [one[index] for one, index in zip(subject.folded, choice, strict=True)])
        expected = distance(subject.model, pruned, subject.calibration.batches, output_distance)
        assert found.distance == pytest.approx(expected, rel=1e-4)
        assert found.distance > 0
        assert len(found.by_sequence) == subject.calibration.num_samples
    after = subject.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_what_is_not_computed_again_changes_nothing(subject: Subject, monkeypatch):
    """To the bit: layers before the first that differs, or what is too large to remember."""
    last = max(one[0].block.layer for one in subject.folded)
    choice, other = [FIRST] * len(subject.folded), subject.only(range(last), FIRST)
    whole = subject.whole()
    current = whole.measure(choice)
    spent = whole.passes
    beside = whole.measure_beside(other, current, never)
    expected = subject.whole().measure(other)
    assert torch.equal(beside.by_sequence, expected.by_sequence)
    assert not torch.equal(beside.by_sequence, current.by_sequence)
    # What was found beside another is as good to go on from.
    again = whole.measure_beside(choice, beside, never)
    assert torch.equal(again.by_sequence, current.by_sequence)
    # The last layer alone, or one of the last, twice.
    assert whole.passes - spent <= 2 * (1 - last / len(transformer_layers(subject.model))) + 1e-9

    monkeypatch.setattr(whole_model, "MAX_REMEMBERED", 0)
    forgetful = subject.whole()
    current = forgetful.measure(choice)
    assert torch.equal(current.by_sequence, again.by_sequence)
    spent = forgetful.passes
    found = forgetful.measure_beside(other, current, never)
    assert torch.equal(found.by_sequence, expected.by_sequence)
    assert forgetful.passes - spent == pytest.approx(1)
