"""The pipelines of transformers take a reloaded model, in full and in half precision."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import build, cut, pruned

import stat_prune
from stat_prune.checkpoints.checkpoint import save_checkpoint

TEXT = "the cat sat on the mat"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_generation_continues_as_the_pruned_model_does(word_tokenizer, tmp_path, dtype):
    model = pruned("LlamaForCausalLM", dtype)
    save_checkpoint(tmp_path / "out", model=model, tokenizer=word_tokenizer)
    loaded = stat_prune.load(tmp_path / "out")
    assert loaded.dtype == getattr(torch, dtype)
    settings = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    generate = transformers.pipeline("text-generation", model=loaded, tokenizer=word_tokenizer)
    ids = word_tokenizer(TEXT, return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    found = generate(TEXT, **settings)[0]["generated_text"]
    assert found == word_tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fill_mask_ranks_words_as_the_pruned_model_does(word_tokenizer, tmp_path, dtype):
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved(word_tokenizer, tmp_path))
    model = pruned("BertForMaskedLM", dtype)
    save_checkpoint(tmp_path / "out", model=model, tokenizer=tokenizer)
    loaded = stat_prune.load(tmp_path / "out")
    fill = transformers.pipeline("fill-mask", model=loaded, tokenizer=tokenizer, top_k=4)
    found = [one["token"] for one in fill(TEXT.replace("mat", tokenizer.mask_token))]
    batch = tokenizer(TEXT.replace("mat", tokenizer.mask_token), return_tensors="pt")
    place = (batch["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    with torch.no_grad():
        logits = model(**batch).logits[0, place].float()
    assert found == logits.softmax(-1).topk(4).indices.tolist()


@pytest.mark.parametrize("task", ["fill-mask", "feature-extraction"])
def test_a_pipeline_opens_the_folder_by_its_name(word_tokenizer, tmp_path, task):
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved(word_tokenizer, tmp_path))
    model = pruned("BertForMaskedLM" if task == "fill-mask" else "BertModel")
    save_checkpoint(tmp_path / "out", model=model, tokenizer=tokenizer)
    named = transformers.pipeline(task, model=str(tmp_path / "out"), trust_remote_code=True)
    given = transformers.pipeline(task, model=model, tokenizer=tokenizer)
    text = TEXT.replace("mat", tokenizer.mask_token)
    assert named(text) == given(text)


def saved(tokenizer, folder):
    """A copy of the tokenizer that knows a mask, as the words of the fixture have none."""
    tokenizer.save_pretrained(folder / "tokenizer")
    copied = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    copied.add_special_tokens({"mask_token": "[MASK]"})
    copied.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def test_a_decoder_of_half_precision_trains_a_step_with_trainer(tmp_path):
    model = cut(build("LlamaForCausalLM", "bfloat16"))
    save_checkpoint(tmp_path / "out", model=model)
    loaded = stat_prune.load(tmp_path / "out")
    ids = torch.arange(2, 18)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=1, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=0.1,
    )  # fmt: skip
    trainer = transformers.Trainer(
        loaded, arguments, train_dataset=[{"input_ids": ids, "labels": ids}]
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    again = stat_prune.load(tmp_path / "trained")
    assert again.dtype == torch.bfloat16
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(again.state_dict()[name], loaded.state_dict()[name])
    assert not torch.equal(again.state_dict()[name], model.state_dict()[name])
