from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer, WordPieceTrainer
from tokenizers_at_hand import byte_level, with_spaces
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    BertTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    XLMRobertaTokenizer,
)

import stat_prune
from stat_prune import Parameters, trim_vocabulary
from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.errors import DataError, ModelError, SettingsError
from stat_prune.surgery.embeddings import decompose_table, factor

WORDS = (
    "the cat sat on mat and then it ran under house a dog bird quick brown fox jumps over lazy "
    "thick thin thing other another mother father rather gather rating mating hating"
).split()
ALL = [" ".join(random.Random(seed).choices(WORDS, k=8)) for seed in range(60)]
KEPT = ["the cat sat on the mat", "then the other mother ran"] * 6


def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = WordPieceTrainer(vocab_size=90, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(ALL, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=True))
    tokens = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(
        vocab_size=90, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(ALL, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


TOKENIZERS = {
    "WordPiece": wordpiece,
    "Unigram": unigram,
    "bytes": byte_level,
    "byte pairs with blanks": with_spaces,
}


def model_of(tokenizer: Any) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


# Classes that build themselves of a vocabulary, as transformers loads them.
def bert_tokenizer() -> Any:
    return BertTokenizer(vocab=model_of(wordpiece())["vocab"])


def xlm_roberta_tokenizer() -> Any:
    return XLMRobertaTokenizer(vocab=[tuple(row) for row in model_of(unigram())["vocab"]])


def gpt2_tokenizer() -> Any:
    model = model_of(byte_level())
    merges = [tuple(pair) for pair in model["merges"]]
    return GPT2Tokenizer(vocab=model["vocab"] | {"<|endoftext|>": 49}, merges=merges)


@pytest.fixture(params=TOKENIZERS, ids=str)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def encoder(tokenizer: Any) -> PreTrainedModel:
    pad = tokenizer.pad_token_id or 0
    return tiny_bert(BertForMaskedLM, vocab_size=len(tokenizer) + 2, pad_token_id=pad)


def trimmed(model: PreTrainedModel, tokenizer: Any, texts: Any = KEPT, **options: Any):
    return trim_vocabulary(model, tokenizer, texts, progress=False, **options)


def states(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(torch.tensor([ids]))[0]


def samples() -> list[str]:
    """Texts of the words, of parts of words, and of letters in any order."""
    generator = random.Random(0)
    letters = "".join(WORDS)
    mixed = ["".join(generator.choices(letters, k=generator.randint(1, 9))) for _ in range(150)]
    joined = ["".join(generator.choices(WORDS, k=2)) for _ in range(100)]
    return [*ALL, *KEPT, *mixed, *joined, "ran, under: the house!", "Ünïcödé 漢字"]


def test_what_is_made_of_kept_tokens_is_split_and_computed_as_before(tokenizer: Any) -> None:
    model = encoder(tokenizer)
    found = trimmed(model, tokenizer)
    new = {old: number for number, old in enumerate(found.kept)}
    assert len(new) < len(tokenizer)
    exact = 0
    for text in samples():
        before, after = tokenizer(text)["input_ids"], found.tokenizer(text)["input_ids"]
        if set(before) <= set(new):
            exact += 1
            assert after == [new[at] for at in before], text
            assert torch.equal(states(found.model, after), states(model, before))
    assert len(KEPT) < exact < len(samples())


def test_all_else_is_split_into_tokens_that_stay_and_are_the_same_text(tokenizer: Any) -> None:
    found = trimmed(encoder(tokenizer), tokenizer)
    for text in samples():
        before, after = (
            one.decode(one(text)["input_ids"], skip_special_tokens=True)
            for one in (tokenizer, found.tokenizer)
        )
        assert after == before


def test_the_head_speaks_of_the_tokens_that_stay(tokenizer: Any) -> None:
    model = encoder(tokenizer)
    found = trimmed(model, tokenizer)
    before = tokenizer(KEPT[0], return_tensors="pt")["input_ids"]
    after = found.tokenizer(KEPT[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, logits = model(before).logits[..., found.kept], found.model(after).logits
    assert torch.allclose(logits, expected, atol=1e-6)


def test_model_and_tokenizer_are_saved_together(tokenizer: Any, tmp_path: Path) -> None:
    found = trimmed(encoder(tokenizer), tokenizer)
    found.save(tmp_path / "out")
    model = stat_prune.load(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(found.kept) == len(loaded)
    for text in samples():
        ids = found.tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
    assert torch.equal(states(model, ids), states(found.model, ids))
    assert loaded.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.parametrize("make", [bert_tokenizer, xlm_roberta_tokenizer, gpt2_tokenizer])
def test_tokenizers_that_build_themselves_do_so_again(make: Any, tmp_path: Path) -> None:
    tokenizer = make()
    found = trimmed(encoder(tokenizer), tokenizer)
    found.save(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == type(tokenizer).__name__
    new = {old: number for number, old in enumerate(found.kept)}
    assert len(loaded) == len(new) < len(tokenizer)
    for text in samples():
        ids = found.tokenizer(text)["input_ids"]
        assert loaded(text)["input_ids"] == ids
        before = tokenizer(text)["input_ids"]
        if set(before) <= set(new):
            assert ids == [new[at] for at in before]


def test_ids_in_configs_follow() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|user|>")
    model = tiny_llama(vocab_size=len(tokenizer), tie_word_embeddings=True, eos_token_id=end)
    model.generation_config.eos_token_id = [end, 2]
    model.generation_config.suppress_tokens = [5, end]
    found = trimmed(model, tokenizer, ["the cat"])
    moved = found.tokenizer.convert_tokens_to_ids("<|user|>")
    assert moved < end
    assert found.model.config.eos_token_id == moved
    assert found.model.generation_config.eos_token_id == [moved, 2]
    assert found.model.generation_config.suppress_tokens[-1] == moved
    assert model.config.eos_token_id == end
    assert model.config.vocab_size == len(tokenizer)


def test_padding_follows() -> None:
    tokenizer = unigram()
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    tokenizer.pad_token = names[-1]
    model = encoder(tokenizer)
    found = trimmed(model, tokenizer, keep=[names[-1]])
    new = found.tokenizer.pad_token_id
    assert new == len(found.tokenizer) - 1
    assert found.model.get_input_embeddings().padding_idx == new == found.model.config.pad_token_id


def test_a_pruned_and_factored_model_is_trimmed_too(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    pruned = stat_prune.prune(
        encoder(tokenizer), ALL, tokenizer=tokenizer, target=Parameters(0.6, embeddings=0.5),
        progress=False, effort="fast",
    ).model  # fmt: skip
    found = trimmed(pruned, tokenizer)
    exact = pruned.get_input_embeddings().exact
    kept = [one for one in exact.ids.tolist() if one in found.kept]
    assert 0 < len(kept) < len(exact.ids)
    assert len(found.model.get_input_embeddings().exact.ids) == len(kept)
    before, after = tokenizer(KEPT[0])["input_ids"], found.tokenizer(KEPT[0])["input_ids"]
    assert torch.equal(states(found.model, after), states(pruned, before))
    found.save(tmp_path / "out")
    assert torch.equal(states(stat_prune.load(tmp_path / "out"), after), states(pruned, before))


def bart(tokenizer: Any) -> PreTrainedModel:
    sides = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in sides.items()}
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, init_std=0.2, scale_embedding=True,
        bos_token_id=2, pad_token_id=0, eos_token_id=3, decoder_start_token_id=2,
        forced_eos_token_id=3, **sizes,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def t5(tokenizer: Any) -> PreTrainedModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [bart, t5])
def test_stacks_that_share_a_factored_table_share_what_is_left_of_it(
    build: Any, tmp_path: Path
) -> None:
    tokenizer = wordpiece()
    torch.manual_seed(0)
    model = build(tokenizer).eval()
    factor(model, decompose_table(model, torch.arange(float(len(tokenizer))).double()), 0.6)
    as_pruned_class(model)
    found = trimmed(model, tokenizer)
    exact = found.model.get_input_embeddings().exact
    assert 0 < len(exact.ids) < len(model.get_input_embeddings().exact.ids)
    stacks = [side.embed_tokens for side in (found.model.get_encoder(), found.model.get_decoder())]
    assert all(one.exact is exact for one in stacks)
    found.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    before, after = (one(KEPT[0], return_tensors="pt") for one in (tokenizer, found.tokenizer))
    with torch.no_grad():
        expected, logits, again = (
            one(ids["input_ids"], decoder_input_ids=ids["input_ids"]).logits
            for one, ids in ((model, before), (found.model, after), (loaded, after))
        )
    torch.testing.assert_close(logits, expected[..., found.kept], rtol=1e-5, atol=1e-5)
    assert torch.equal(again, logits)


def test_the_report_says_what_other_texts_may_lose() -> None:
    tokenizer = wordpiece()
    # In the order in which they are read, every tenth is one of those that speak of foxes.
    same = trimmed(encoder(tokenizer), tokenizer, KEPT * 2).report
    assert same.unseen == 0
    assert same.num_texts == 24
    assert same.num_tokens == sum(len(tokenizer(text)["input_ids"]) for text in KEPT * 2)
    texts = [*KEPT[:9], "quick fox"]
    report = trimmed(encoder(tokenizer), tokenizer, (text for text in texts)).report
    without = trimmed(encoder(tokenizer), tokenizer, texts[:9]).tokenizer.get_vocab()
    last = tokenizer.convert_ids_to_tokens(tokenizer(texts[9])["input_ids"])
    assert report.unseen == sum(token not in without for token in last) / len(last) > 0
    assert f"{report.unseen:.2%}" in str(report)


def test_tokens_can_be_kept_by_name() -> None:
    tokenizer = wordpiece()
    assert "fox" not in trimmed(encoder(tokenizer), tokenizer).tokenizer.get_vocab()
    found = trimmed(encoder(tokenizer), tokenizer, keep=["fox"])
    assert "fox" in found.tokenizer.get_vocab()


def test_bad_input_is_one_clear_error() -> None:
    tokenizer = wordpiece()
    model = encoder(tokenizer)
    with pytest.raises(DataError, match="no token in the texts|dataset is empty"):
        trimmed(model, byte_level(), [])
    with pytest.raises(DataError, match="is no token"):
        trimmed(model, tokenizer, keep=["nonsense"])
    with pytest.raises(DataError, match="resize_token_embeddings"):
        trimmed(tiny_bert(vocab_size=20), tokenizer)
    with pytest.raises(SettingsError, match="`tokenizer` is None.*AutoTokenizer"):
        trimmed(model, None)
    for slow in (ByT5Tokenizer(), CanineTokenizer()):
        with pytest.raises(SettingsError, match="where it has one.*bytes or characters"):
            trimmed(model, slow)
    with pytest.raises(ModelError, match="PreTrainedModel"):
        trimmed(torch.nn.Linear(2, 2), tokenizer)  # type: ignore[arg-type]
