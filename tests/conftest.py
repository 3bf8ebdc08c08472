"""What all tests share: offline libraries, one thread each, and the folder of real data.

What takes seconds to import is imported where it is used: with ``pytest -n`` the process that
shares out the tests runs none, and the others wait for it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before transformers and datasets are imported: no test may need a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test leaves latency tables behind, or finds any.
os.environ["STAT_PRUNE_CACHE"] = ""

import hypothesis
import pytest

if TYPE_CHECKING:
    from clocks import LinearClock
    from transformers import PreTrainedTokenizerFast

# The same examples each time: what a test finds is there again. A busy machine is no failure.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contract be run for a few families."""
    parser.addoption(
        "--families",
        type=lambda names: set(names.split(",")),
        help="labels of the families that tests/contract is run for, with commas between; "
        "tests of no family are left out",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `realdata` where no folder of real data is given.

    Files with tests that take long begin first: at the end one worker would wait for the other.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if os.environ.get("STAT_PRUNE_DATA"):
        return
    skip = pytest.mark.skip(reason="STAT_PRUNE_DATA does not name a folder of real data")
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: it stays, and is 400,000 objects."""
    import torch

    # Tests run side by side (pytest -n); oversubscribed cores would only slow them down.
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and checkpoints; only for tests marked `realdata`."""
    return Path(os.environ["STAT_PRUNE_DATA"])


@pytest.fixture
def linear_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[LinearClock]:
    """In place of every clock, one that only linear layers move; no table is remembered."""
    from clocks import LinearClock

    from stat_prune.measuring import latency_cache, latency_table

    clock = LinearClock()
    monkeypatch.setattr(time, "thread_time", clock)
    monkeypatch.setattr(time, "perf_counter", lambda: clock())
    monkeypatch.setattr(latency_cache, "_measured", {})
    # It repeats itself, so that the fewest rounds will do.
    monkeypatch.setattr(latency_table, "MAX_ROUNDS", latency_table.MIN_ROUNDS)
    with clock:
        yield clock


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words of a small vocabulary (ids below 64), [CLS] ... [SEP] around, token types for pairs."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = (
        "the a cat dog bird sat ran flew on under over mat tree house and then it was very".split()
    )
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=48,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
