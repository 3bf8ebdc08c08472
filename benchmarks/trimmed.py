"""What trimming does to texts, for the models and tokenizers at hand: `embeddings.py --trim`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import UnigramTrainer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerFast

import stat_prune
from harness.sources import data_folder
from harness.task import Loaded
from tasks import STORIES, TASKS, read_stories

#: Texts that the vocabulary is not trimmed to.
NUM_OTHERS = 300

#: Tokens of the tokenizer that is trained here.
UNIGRAM_SIZE = 8000


def measure_trimmed(num_texts: int) -> list[dict[str, Any]]:
    """`compare` for each model at hand, on sentences of STS-B; a fifth as many lines of stories."""
    records = []
    for name, (load, read, fraction) in tqdm(AT_HAND.items(), unit="model"):
        texts = read()
        random.Random(0).shuffle(texts)
        others, rest = texts[:NUM_OTHERS], texts[NUM_OTHERS:]
        wanted = max(1, round(fraction * num_texts))
        records.append({"model": name, **compare(*load(), rest[:wanted], others)})
        print(json.dumps(records[-1]), flush=True)
    return records


def compare(
    model: Any, tokenizer: Any, texts: Sequence[str], others: Sequence[str]
) -> dict[str, Any]:
    """Trim to the tokens of some texts, and count what becomes of others.

    Returns
    -------
    dict
        Of the others: ``changed``, texts with other tokens than before; ``tokens split``, the
        fraction of tokens that left; ``of kept tokens``, texts whose tokens all stay. Of these:
        ``states equal``, texts split as before whose hidden states are the same to the bit;
        ``logits equal``, those whose logits of the tokens that stay are, too; ``logits apart``,
        the largest difference of two logits. Without a head these two are None.
    """
    trimmed = stat_prune.trim_vocabulary(model, tokenizer, texts, progress=False)
    new = {old: number for number, old in enumerate(trimmed.kept)}
    has_head = model.get_output_embeddings() is not None
    of_kept = states_equal = logits_equal = changed = num_tokens = num_split = 0
    apart = 0.0
    for text in others:
        before, after = (one(text)["input_ids"] for one in (tokenizer, trimmed.tokenizer))
        moved = [new.get(token) for token in before]
        alike = moved == after
        num_tokens += len(moved)
        num_split += moved.count(None)
        of_kept += None not in moved
        changed += not alike
        if not alike or not before:
            continue
        states_equal += torch.equal(
            _output(model.base_model, before), _output(trimmed.model.base_model, after)
        )
        if has_head:
            logits = _output(model, before)[..., trimmed.kept]
            difference = float((logits - _output(trimmed.model, after)).abs().max())
            logits_equal += difference == 0
            apart = max(apart, difference)
    report = trimmed.report
    return {
        "vocabulary": f"{report.vocabulary_before:,} → {report.vocabulary:,}",
        "parameters kept": f"{report.parameters / report.parameters_before:.0%}",
        "texts read": report.num_texts,
        "other texts": len(others),
        "changed": changed,
        "tokens split": f"{num_split / num_tokens:.1%}",
        "of kept tokens": of_kept,
        "states equal": states_equal,
        "logits equal": logits_equal if has_head else None,
        "logits apart": apart if has_head else None,
    }


def _output(model: Any, ids: list[int]) -> Tensor:
    """Hidden states of a model without its head, else logits."""
    with torch.no_grad():
        output: Tensor = model(torch.tensor([ids]))[0]
    return output


def _sentences() -> list[str]:
    """Of STS-B train."""
    return list(dict.fromkeys(TASKS["encoder"]().calibration()))


def _lines() -> list[str]:
    lines = (line.strip() for story in read_stories() for line in story.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def _gpt2() -> Loaded:
    """Random weights."""
    folder = data_folder() / "data" / "tokenizers" / "gpt2"
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    return _random_decoder(len(tokenizer)), tokenizer


def _unigram() -> Loaded:
    """Random weights, and a tokenizer that is trained on paragraphs of WikiText."""
    path = data_folder() / "data" / "wikitext2" / "train_1000_paragraphs.json"
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=UNIGRAM_SIZE, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(json.loads(path.read_text(encoding="utf-8")), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return _random_decoder(len(fast)), fast


def _random_decoder(vocabulary: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


#: Models, texts, and how many of them: a small vocabulary is soon read whole.
AT_HAND: dict[str, tuple[Callable[[], Loaded], Callable[[], list[str]], float]] = {
    "all-MiniLM-L6-v2, WordPiece": (lambda: TASKS["encoder"]().load(), _sentences, 1),
    "Llama of stories, byte pairs with blanks": (lambda: TASKS[STORIES]().load(), _lines, 0.2),
    "random weights, GPT-2's byte pairs": (_gpt2, _sentences, 1),
    "random weights, Unigram trained on WikiText": (_unigram, _sentences, 1),
}
