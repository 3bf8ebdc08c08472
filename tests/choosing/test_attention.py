"""Criteria that look at attention: which heads they keep, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from toys import head_block, random_statistics

import stat_prune
from stat_prune import MACs, Parameters
from stat_prune.attention import head_statistics
from stat_prune.choosing.criteria import CRITERIA
from stat_prune.errors import DataError, SettingsError
from stat_prune.measuring.statistics import BlockStatistics
from stat_prune.settings.methods import ATTENTION_CRITERIA, METHODS

TEXTS = [
    "the cat sat on the mat and the dog ran under the tree",
    "a bird flew over the house then it sat",
    "it was a very very small dog",
    "the bird sat on the cat and the cat ran",
] * 20


def with_attention(heads: int, groups: int, **measured: list[float]) -> BlockStatistics:
    statistics, _, _ = random_statistics(head_block(heads, groups, 2, 6))
    values = {name: torch.tensor(column).double() for name, column in measured.items()}
    return BlockStatistics(**vars(statistics) | {"attention": values})


def order(name: str, statistics: BlockStatistics, unit_size: int = 2) -> list[int]:
    return CRITERIA[name](statistics, unit_size, torch.Generator()).order.tolist()


MEASURED = {
    "normalized_entropy": [0.9, 0.2, 0.5, 0.4],
    "sparsity": [0.1, 0.8, 0.2, 0.6],
    "to_special": [0.0, 0.9, 0.3, 0.1],
    "to_current": [0.1, 0.0, 0.3, 0.2],
}


def test_sharp_heads_and_heads_that_look_elsewhere_come_first():
    statistics = with_attention(4, 4, **MEASURED)
    assert order("attention-entropy", statistics) == [1, 3, 2, 0]
    assert order("attention-sparsity", statistics) == [1, 3, 2, 0]
    assert order("attention-distribution", statistics) == [0, 3, 2, 1]
    # Ranks (0 worst): entropy 0 3 1 2, sparsity 0 3 1 2, distribution 3 0 1 2.
    assert order("attention-combined", statistics) == [1, 3, 0, 2]


def test_a_key_value_head_has_the_scores_of_its_query_heads():
    statistics = with_attention(4, 2, **MEASURED)
    # Entropies add up to 1.1 and 0.9.
    assert order("attention-entropy", statistics, unit_size=4) == [1, 0]


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
@pytest.mark.parametrize("criterion", ATTENTION_CRITERIA)
def test_only_heads_leave_and_the_correction_lowers_the_error(build, criterion, word_tokenizer):
    errors = {}
    for method in (criterion, f"{criterion}-corrected"):
        result = stat_prune.prune(
            build(),
            TEXTS,
            tokenizer=word_tokenizer,
            target=Parameters({"heads": 0.5}),
            method=method,
            progress=False,
        )
        rows = result.report.blocks
        assert all((row.kept < row.total) == (row.kind == "heads") for row in rows)
        errors[method] = [row.output_error for row in rows if row.kind == "heads"]
    plain, corrected = errors.values()
    assert all(b < a for a, b in zip(plain, corrected, strict=True))


def test_heads_of_least_entropy_are_those_that_prune_keeps(word_tokenizer):
    result = stat_prune.prune(
        tiny_bert(),
        TEXTS,
        tokenizer=word_tokenizer,
        target=MACs({"heads": 0.5}),
        method="attention-entropy",
        progress=False,
    )
    found = head_statistics(tiny_bert(), TEXTS, tokenizer=word_tokenizer, progress=False)
    for name, values in found.values.items():
        best = values["normalized_entropy"].argsort()[:2].sort().values
        assert result.plan[name] == best.tolist()


def test_a_target_of_neurons_too_is_refused_before_any_work():
    with pytest.raises(SettingsError, match=r"Pass target=MACs\(\{'heads': 0.6\}\), or ignore="):
        stat_prune.prune(tiny_bert(), None, target=MACs(0.6), method="attention-entropy")


def test_special_tokens_ask_for_a_tokenizer(word_tokenizer):
    rows = [word_tokenizer(text, return_tensors="pt") for text in TEXTS[:4]]
    settings = {"target": MACs({"heads": 0.5}), "progress": False}
    stat_prune.prune(tiny_bert(), rows, method="attention-sparsity", **settings)
    with pytest.raises(DataError, match="which tokens are special: pass tokenizer="):
        stat_prune.prune(tiny_bert(), rows, method="attention-distribution", **settings)


def test_every_attention_criterion_is_a_method_with_and_without_correction():
    for name in ATTENTION_CRITERIA:
        assert METHODS[name].criterion == METHODS[f"{name}-corrected"].criterion == name
        assert METHODS[f"{name}-corrected"].corrected and not METHODS[name].corrected


def test_heads_drawn_at_random_profit_from_the_correction(word_tokenizer):
    errors = [
        [
            row.output_error
            for row in stat_prune.prune(
                tiny_bert(),
                TEXTS,
                tokenizer=word_tokenizer,
                target=MACs({"heads": 0.5}),
                method=method,
                progress=False,
            ).report.blocks
            if row.kind == "heads"
        ]
        for method in ("random-corrected", "random")
    ]
    assert all(corrected < plain for corrected, plain in zip(*errors, strict=True))


@pytest.mark.parametrize("method", ["attention-entropy", "stat"])
def test_every_layer_can_keep_as_many_heads(method, word_tokenizer):
    report = stat_prune.prune(
        tiny_bert(),
        TEXTS,
        tokenizer=word_tokenizer,
        target=MACs({"heads": 0.5}),
        method=method,
        uniform=True,
        passes=1,
        progress=False,
    ).report
    assert {row.kept for row in report.blocks if row.kind == "heads"} == {2}
    assert all(row.kept == row.total for row in report.blocks if row.kind == "neurons")
