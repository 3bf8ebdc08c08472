"""What all tests share: offline libraries, one thread each, and the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

# Before transformers and datasets are imported: no test may need a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Tests run side by side (pytest -n); oversubscribed cores would only slow them down.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `realdata` where no folder of real data is given."""
    if os.environ.get("STAT_PRUNE_DATA"):
        return
    skip = pytest.mark.skip(reason="STAT_PRUNE_DATA does not name a folder of real data")
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data and checkpoints; only for tests marked `realdata`."""
    return Path(os.environ["STAT_PRUNE_DATA"])
