"""The README's own code runs as it stands, one block after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from stat_prune.cli.demo.demo_data import HUB_NAME, find_sentence_encoder, read_passages
from stat_prune.errors import LoadError

README = Path(__file__).parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    try:
        folder = find_sentence_encoder()
    except LoadError as error:
        pytest.skip(str(error))
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 2
    monkeypatch.chdir(tmp_path)
    names = {"texts": read_passages(seed=0).calibration[:64]}
    for block in blocks:
        exec(block.replace(HUB_NAME, str(folder)), names)
    result, reloaded = names["result"], names["model"]
    tokenizer = AutoTokenizer.from_pretrained("out")
    inputs = tokenizer("A sentence.", return_tensors="pt")
    with torch.no_grad():
        expected = result.model(**inputs).last_hidden_state
        assert torch.equal(reloaded(**inputs).last_hidden_state, expected)
        dense = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state
    assert not torch.equal(dense, expected)
