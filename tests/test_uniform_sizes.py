"""`uniform=True`: whatever is kept, the result can be saved, and plain transformers opens it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from hand_pruned import assert_same_model
from tiny_models import SIZES, tiny_bert, tiny_llama

import stat_prune
from stat_prune import MACs
from stat_prune.checkpoints.checkpoint import as_pruned_class, save_checkpoint
from stat_prune.errors import UniformSizesWarning
from stat_prune.families import find_blocks
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

ROWS = [{"input_ids": torch.randint(4, 40, (20,))} for _ in range(40)]
FAMILIES = ("Llama", "Gemma2", "Gemma3", "Mistral", "Qwen2", "Qwen3", "Phi3", "Mixtral")


def build(family: str, heads: int, groups: int) -> transformers.PreTrainedModel:
    config = getattr(
        transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    )
    sizes = SIZES | {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config(**sizes)).eval()


@pytest.mark.filterwarnings("ignore::stat_prune.errors.UniformSizesWarning")
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 4), (8, 2)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_target_for_heads_gives_what_plain_transformers_opens(family, heads, groups, tmp_path):
    model = build(family, heads, groups)
    for fraction in (0.8, 0.4):
        result = stat_prune.prune(
            model, ROWS, target=MACs({"heads": fraction}), uniform=True, progress=False
        )
        folder = tmp_path / f"{fraction}"
        result.save(folder)
        assert not hasattr(result.model.config, "stat_prune")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert_same_model(loaded, result.model)
        assert_same_model(stat_prune.load(folder), result.model)


def test_a_config_that_takes_only_some_numbers_of_heads_is_named_with_them():
    model = build("Llama", heads=8, groups=8)
    with pytest.warns(UniformSizesWarning, match="LlamaConfig .* 1, 2, 4 or 8 can stay"):
        result = stat_prune.prune(
            model, ROWS, target=MACs({"heads": 0.9}), uniform=True, progress=False
        )
    assert {len(result.plan[f"layers.{n}.heads"]) for n in range(2)} == {4}


@pytest.mark.parametrize("family", ["Mistral", "Qwen3"])
def test_a_config_that_takes_any_number_of_heads_is_no_bound(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UniformSizesWarning)
        result = stat_prune.prune(
            build(family, 4, 4), ROWS, target=MACs({"heads": 0.75}), uniform=True, progress=False
        )
    assert result.model.config.num_attention_heads == 3


def test_without_uniform_any_number_of_heads_stays():
    model = build("Llama", 4, 4)
    result = stat_prune.prune(model, ROWS, target=MACs({"heads": 0.75}), progress=False)
    assert sum(row.kept for row in result.report.blocks if row.kind == "heads") == 6


def test_layers_that_happen_to_be_alike_fall_back_to_the_record_of_sizes(tmp_path):
    model = tiny_llama(num_key_value_heads=4)
    folded = []
    for block in find_blocks(model):
        if block.kind == "heads":
            units = torch.arange(3)
            weight = projection(model.base_model, block.consumer).weight
            kept = weight.detach()[:, block.channels(units)]
            folded.append(FoldedConsumer(block, units, kept, bias=None, output_error=0.0))
    apply(model, folded)
    as_pruned_class(model)
    save_checkpoint(tmp_path / "out", model=model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["stat_prune"]["linear"]["layers.0.self_attn.o_proj"][1] == 24
    assert_same_model(stat_prune.load(tmp_path / "out"), model)
    remote = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    assert_same_model(remote, model)


def test_families_whose_heads_no_config_says_are_not_held_back_and_a_warning_says_so():
    with pytest.warns(UniformSizesWarning, match="BertConfig cannot say .* prune neurons alone"):
        result = stat_prune.prune(
            tiny_bert(), ROWS, target=MACs({"heads": 0.75}), uniform=True, progress=False
        )
    assert {len(units) for name, units in result.plan.items() if name.endswith("heads")} == {3}
