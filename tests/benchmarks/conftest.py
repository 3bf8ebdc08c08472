"""Tiny checkpoints and data in the local form, for whole benchmarks without a hub."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
from tiny_models import tiny_bert, tiny_llama
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

WORDS = "the a cat dog bird sat ran flew on under over mat tree house and then it was very".split()


def sentences(count: int, length: int, seed: int) -> list[str]:
    """Random words that the tokenizer knows."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


def squad_file(count: int, seed: int, *, unanswerable: bool = False) -> dict:
    draw = random.Random(seed)
    entries = []
    for number, context in enumerate(sentences(count, 20, seed)):
        words = context.split()
        start = draw.randrange(15)
        answer = {
            "text": " ".join(words[start : start + 2]),
            "answer_start": len(" ".join(words[:start])) + bool(start),
        }
        silent = unanswerable and number % 3 == 0
        question = {
            "id": str(number),
            "question": "was it a cat",
            "answers": [] if silent else [answer],
            "is_impossible": silent,
        }
        entries.append({"context": context, "qas": [question]})
    return {"version": "v", "data": [{"title": "t", "paragraphs": entries}]}


def of_decoder(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same words with nothing around them, and an end of text."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A", "$A $B", [])
    tokenizer.eos_token = "[SEP]"
    return tokenizer


@pytest.fixture(scope="session")
def local(tmp_path_factory, word_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder for STAT_PRUNE_DATA."""
    folder = tmp_path_factory.mktemp("local")
    models = {
        "tiny-sst2": tiny_bert(BertForSequenceClassification, initializer_range=0.5),
        "tiny-squad": tiny_bert(BertForQuestionAnswering, initializer_range=0.5),
        "tiny-llama": tiny_llama(max_position_embeddings=32),
    }
    for name, model in models.items():
        model.save_pretrained(folder / "models" / name)
        tokenizer = word_tokenizer if name != "tiny-llama" else of_decoder(word_tokenizer)
        tokenizer.save_pretrained(folder / "models" / name)
    data = folder / "data"
    for part in ("glue/sst2", "squad", "wikitext2"):
        (data / part).mkdir(parents=True)
    for split, seed in (("train", 0), ("dev", 1)):
        rows = [f"{text}\t{i % 2}" for i, text in enumerate(sentences(60, 12, seed))]
        (data / "glue" / "sst2" / f"{split}.tsv").write_text(
            "\n".join(["sentence\tlabel", *rows]) + "\n"
        )
        for version in ("1.1", "2.0"):
            content = squad_file(30, seed, unanswerable=version == "2.0")
            (data / "squad" / f"{split}-v{version}.json").write_text(json.dumps(content))
    (data / "wikitext2" / "train.txt").write_text("\n".join(sentences(60, 30, 0)))
    (data / "wikitext2" / "test.txt").write_text("\n".join(sentences(30, 30, 1)))
    return folder


@pytest.fixture
def at_hand(local: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`local`, named by STAT_PRUNE_DATA."""
    monkeypatch.setenv("STAT_PRUNE_DATA", str(local))
    return local
