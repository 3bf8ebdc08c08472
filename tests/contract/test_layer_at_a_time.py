"""Every family that is one chain of layers is pruned layer by layer as it is in memory."""

from __future__ import annotations

import json

import pytest
import torch
from families import FAMILIES, LAYOUTS, Family, examples

import stat_prune

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then it was very".split()
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 11]) + f" {WORDS[i % 19]}" for i in range(40)]

#: With several stacks, weights that layers share, or several made of one that is stored; they are
#: refused (tests/on_disk).
OTHERS = ("Albert", "Bart", "T5", "Whisper")
CHAINS = [f for f in FAMILIES if f.name not in OTHERS and f.label not in ("CLIP", "Dinov2-gated")]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda family: family.label)
def test_layer_by_layer_a_family_is_pruned_as_in_memory(chain: Family, tmp_path, word_tokenizer):
    chain.build(chain.heads[1]).save_pretrained(tmp_path / "dense")
    model = stat_prune.load(tmp_path / "dense")
    data = examples(model, TEXTS, word_tokenizer)
    # A search reads nothing of a family but its layout.
    spent = {"effort": "fast"} if chain.label in LAYOUTS else {"budget": "probed"}
    options = {
        "target": stat_prune.MACs(0.6),
        "tokenizer": word_tokenizer,
        "batch_size": 7,
        "progress": False,
        **spent,
    }
    whole = stat_prune.prune(model, data, **options)
    whole.save(tmp_path / "whole")

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", data, output_dir=tmp_path / "out", **options
    )

    assert pruned.plan == whole.plan
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((tmp_path / "whole" / "config.json").read_text())
    wanted, found = whole.model.state_dict(), stat_prune.load(tmp_path / "out").state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
