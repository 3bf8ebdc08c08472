"""What may not matter does not: padding, batches, order, the clock."""

from __future__ import annotations

import random

import pytest
import torch
from families import FAMILIES, Family, completed, output

from stat_prune import MACs
from stat_prune.reporting.result import PruningResult

#: Where the model is run for each by itself.
FEW = {"num_calibration_samples": 32}


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


@pytest.fixture(scope="module")
def batches(texts, word_tokenizer):
    """The texts as padded batches of eight: by padding side."""

    def make(side: str, size: int = 8) -> list[dict[str, torch.Tensor]]:
        return [
            dict(
                word_tokenizer(
                    texts[start : start + size],
                    padding="max_length",
                    max_length=40,
                    padding_side=side,
                    return_tensors="pt",
                )
            )
            for start in range(0, len(texts), size)
        ]

    return make


@pytest.fixture(scope="module")
def halved(prune, texts):
    """The result on the texts as they are, made once a family."""
    made = {}

    def of(family: Family) -> PruningResult:
        if family.label not in made:
            made[family.label] = prune(family.build(), MACs(0.5), dataset=texts)
        return made[family.label]

    return of


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_the_result(family: Family, prune, halved, batches, side):
    plain = halved(family)
    padded = prune(family.build(), MACs(0.5), dataset=batches(side))
    assert padded.plan == plain.plan
    assert padded.report.seq_length == plain.report.seq_length
    assert same_weights(padded.model, plain.model)


# What a decoder reads begins with its start, and has no padding on the left.
@pytest.mark.parametrize(
    ("label", "side"), [("Whisper", "right"), ("CLIP", "right"), ("CLIP", "left")]
)
def test_padding_of_text_beside_signals_does_not_change_the_result(
    label, side, prune, word_salads, word_tokenizer
):
    (family,) = [family for family in FAMILIES if family.label == label]
    model = family.build(family.writing_head or "Model")
    padding = {"padding": "max_length", "max_length": 40, "padding_side": side}
    plain, padded = (
        [
            completed(model, word_tokenizer(text, return_tensors="pt", **how), seed)
            for seed, text in enumerate(word_salads)
        ]
        for how in ({}, padding)
    )
    plain, padded = (prune(model, MACs(0.5), dataset=data) for data in (plain, padded))
    assert padded.plan == plain.plan
    assert padded.report.after == plain.report.after
    assert same_weights(padded.model, plain.model)


@pytest.mark.layouts
def test_batch_size_changes_the_output_by_rounding_alone(family: Family, prune, inputs):
    model = family.build()
    one, many = (prune(model, MACs(0.5), batch_size=size, **FEW) for size in (1, 32))
    assert one.plan == many.plan
    expected, found = (output(result.model, inputs) for result in (one, many))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.layouts
def test_batch_size_changes_weights_by_rounding_alone_where_products_are_float64(
    family: Family, prune
):
    model = family.build()
    settings = {"precision": "float64"} | FEW
    one, many = (prune(model, MACs(0.5), batch_size=size, **settings) for size in (1, 32))
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(
            weight, many.model.state_dict()[name], rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.layouts
def test_the_order_of_the_examples_does_not_change_the_result(family: Family, prune, halved, texts):
    shuffled = random.Random(1).sample(texts, len(texts))
    plain, other = halved(family), prune(family.build(), MACs(0.5), dataset=shuffled)
    assert other.plan == plain.plan
    assert same_weights(other.model, plain.model)


@pytest.mark.layouts
@pytest.mark.parametrize("method", ["stat", "stat-paper", "random"])
def test_the_same_seed_gives_the_same_bits(family: Family, prune, method):
    model = family.build()
    settings = {"seed": 3, "num_calibration_samples": 20, "method": method}
    # 'stat-paper' cannot halve layers of one key/value head.
    first, second = (prune(model, MACs(0.6), **settings) for _ in range(2))
    assert first.plan == second.plan
    assert same_weights(first.model, second.model)


@pytest.mark.layouts
def test_another_seed_draws_other_examples(family: Family, prune):
    model = family.build()
    first, second = (
        prune(model, MACs(0.5), seed=seed, num_calibration_samples=30) for seed in (0, 1)
    )
    key = "calibration_fingerprint"
    assert first.report.settings[key] != second.report.settings[key]
