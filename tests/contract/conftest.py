"""What every test of the contract shares: a family or a decoder, a little text, `prune`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from families import FAMILIES, LAYOUTS, TEXT_FAMILIES, Family, examples
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import stat_prune
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.methods import BASELINES

Prune = Callable[..., PruningResult]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `family` once a family, one for `decoder` once a decoder.

    One for `writer` runs for what generates text, behind an encoder too. One that asks for `head`
    too runs once for each head class of the family; one that asks for `texts` is of the families
    that read nothing else. A module with `ROWS` has families of its own.
    """
    listed = TEXT_FAMILIES if "texts" in metafunc.fixturenames else FAMILIES
    every = getattr(metafunc.module, "ROWS", listed)
    if "head" in metafunc.fixturenames:
        pairs = [(family, head) for family in every for head in family.heads]
        ids = [f"{family.label}-{head}" for family, head in pairs]
        metafunc.parametrize(("family", "head"), pairs, ids=ids)
        return
    decoders = [family for family in every if family.is_decoder]
    writers = [family for family in every if family.writing_head]
    for name, families in (("family", every), ("decoder", decoders), ("writer", writers)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, families, ids=lambda family: family.label)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the methods that refuse mixtures of experts (a test of their own says so).

    And, of what is marked `layouts`, what the families of other layouts show; with ``--families``,
    all families but those.
    """
    items[:] = [item for item in items if not refused(getattr(item, "callspec", None))]
    items[:] = [item for item in items if not shown_by_others(item)]
    wanted = config.getoption("families")
    if wanted is not None:
        items[:] = [item for item in items if family_of(item) in wanted]


def family_of(item: pytest.Item) -> str | None:
    """Label of the family that a test is run for; None of a test of no family."""
    parameters = getattr(item, "callspec", None)
    values = parameters.params.values() if parameters else ()
    return next((value.label for value in values if isinstance(value, Family)), None)


def refused(callspec: Any) -> bool:
    parameters = callspec.params if callspec else {}
    family = parameters.get("family")
    # Items of the whole session come by, with parameters of their own.
    mixture = isinstance(family, Family) and family.has_experts
    return mixture and parameters.get("method") in BASELINES


def shown_by_others(item: pytest.Item) -> bool:
    """Whether a test marked `layouts` runs for a family whose layout another one stands for.

    Where there is one for each head, one head stays.
    """
    label = family_of(item)
    if label is None or label in LAYOUTS or item.get_closest_marker("layouts") is None:
        return False
    parameters = item.callspec.params
    return "head" not in parameters or parameters["head"] != parameters["family"].heads[1]


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    """Nothing here is about power cuts, and thousands of small models are saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def word_salads(word_tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """80 word salads of 3 to 16 words."""
    words = [word for word in word_tokenizer.get_vocab() if not word.startswith("[")]
    source = random.Random(0)
    return [" ".join(source.choices(sorted(words), k=source.randint(3, 16))) for _ in range(80)]


@pytest.fixture(scope="session")
def texts(word_salads: list[str]) -> list[str]:
    """For tests of data that are texts."""
    return word_salads


@pytest.fixture(scope="session")
def inputs(word_tokenizer: PreTrainedTokenizerFast, word_salads: list[str]) -> dict[str, Tensor]:
    """Eight held-out sequences of one length; `families.output` adds what is no text."""
    words = " ".join(word_salads).split()
    held_out = [" ".join(words[i : i + 12]) for i in range(0, 96, 12)]
    encoded = word_tokenizer(held_out, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="session")
def prune(word_tokenizer: PreTrainedTokenizerFast, word_salads: list[str]) -> Prune:
    """`stat_prune.prune` on the texts, in silence; on more where a model reads more.

    Without a search for the budget, two thirds of the time, but where a test names a method or
    says what to spend.
    """
    return _pruning(word_tokenizer, word_salads, "probed")


@pytest.fixture(scope="session")
def prune_unprobed(word_tokenizer: PreTrainedTokenizerFast, word_salads: list[str]) -> Prune:
    """`prune` for what any pruned model shows: without probes, of which it takes half."""
    return _pruning(word_tokenizer, word_salads, "unweighted")


def _pruning(tokenizer: PreTrainedTokenizerFast, texts: list[str], budget: str) -> Prune:
    def run(model: PreTrainedModel, target: Any, dataset: Any = None, **settings: Any):
        if dataset is None:
            dataset = examples(model, texts, tokenizer)
        asked = {"method", "budget", "effort", "passes", "objective"} & settings.keys()
        spent: dict[str, Any] = {"effort": "fast"} if asked else {"budget": budget}
        if settings.get("method") == "stat-paper":  # which draws a sketch for each sequence
            spent["num_calibration_samples"] = 20
        settings = {"tokenizer": tokenizer, "progress": False} | spent | settings
        return stat_prune.prune(model, dataset, target=target, **settings)

    return run
