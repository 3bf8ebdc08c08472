"""What `embeddings.py --int8` adds, and how weights are rounded for it and for the demo."""

from __future__ import annotations

import random
from types import SimpleNamespace

import torch
from tiny_models import tiny_bert

import embeddings
from stat_prune.cli.demo.rounding import in_int8

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then it was".split()


def test_rows_are_rounded_to_steps_of_their_own():
    model = tiny_bert()
    name, dense = "encoder.layer.0.output.dense.weight", model.state_dict()
    dense[name][0] = 0
    before = {name: tensor.clone() for name, tensor in dense.items()}

    rounded, num_bytes = in_int8(model)

    weight, found = before[name], rounded.state_dict()[name]
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    assert torch.all((found - weight).abs() <= steps * 0.5001)
    assert not torch.equal(found, weight)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    matrices = [one for one in model.parameters() if one.dim() == 2]
    others = [one for one in model.parameters() if one.dim() != 2]
    assert num_bytes == sum(m.numel() + 4 * len(m) for m in matrices) + sum(
        4 * one.numel() for one in others
    )


def test_each_model_is_scored_in_8_bits_too(word_tokenizer, monkeypatch):
    task = SimpleNamespace(
        load=lambda: (tiny_bert(), word_tokenizer),
        calibration=lambda: [" ".join(random.Random(i).choices(WORDS, k=12)) for i in range(40)],
        score=lambda model, tokenizer: {"norm": model.get_input_embeddings().weight.norm().item()},
    )
    monkeypatch.setitem(embeddings.TASKS, "tiny", lambda: task)

    records = embeddings.measure("tiny", [0.5], [], [], int8=True, effort="fast")

    names = ["dense", "dense, int8", "embeddings at 0.5", "embeddings at 0.5, int8"]
    assert [one["what"] for one in records] == names
    for whole, rounded in zip(records[::2], records[1::2], strict=True):
        assert rounded["MiB"] < whole["MiB"] / 2
        assert rounded["norm"] != whole["norm"]
