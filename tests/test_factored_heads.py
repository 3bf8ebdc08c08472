"""Heads of language models with weights of their own, as two factors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from isolation import outputs_without_stat_prune
from tiny_models import tiny_bert, tiny_llama
from torch import Tensor
from transformers import (
    AutoModel,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

import stat_prune
from stat_prune import Bytes, MACs, Parameters
from stat_prune.errors import ModelError, SettingsError, TargetError
from stat_prune.linalg import low_rank
from stat_prune.surgery.embeddings import decompose_head, factor_own_head

torch.manual_seed(0)
IDS = torch.randint(5, 60, (40, 9))
ROWS = [{"input_ids": ids} for ids in IDS]
HALF = Parameters({"lm_head": 0.5})


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


BUILD = {
    "Llama": tiny_llama,
    "BERT": lambda: tiny_bert(BertForMaskedLM, tie_word_embeddings=False),
    "GPT-2": gpt2,
}


@pytest.fixture(params=BUILD, ids=str)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return BUILD[request.param]()


def pruned(model: PreTrainedModel, target: Any = HALF, rows: Any = ROWS, **settings: Any):
    options = {"progress": False, "effort": "fast", "mask_fraction": 0.0}
    return stat_prune.prune(model, rows, target=target, **options | settings)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def weight(head: Any) -> Tensor:
    """Of a head, as a single matrix."""
    if not hasattr(head, "projection"):
        return head.weight.detach()
    rows = (head.weight @ head.projection.weight.T + head.projection.bias).detach()
    if head.exact is not None:
        rows[head.exact.ids.long()] = head.exact.rows(head.weight).detach()
    return rows


def test_the_model_is_the_dense_one_with_another_head(model: PreTrainedModel) -> None:
    dense = sum(p.numel() for p in model.parameters())
    result = pruned(model)
    head = result.model.get_output_embeddings()
    after, rows, width = weight(head), *model.get_output_embeddings().weight.shape
    assert not torch.allclose(after, weight(model.get_output_embeddings()), atol=1e-2)
    left = sum(p.numel() for p in result.model.parameters())
    assert 0 <= dense - left - 0.5 * rows * width < rows + width
    found = result.report.lm_head
    assert found.parameters_before - found.parameters == dense - left
    assert f"by rank {found.rank}" in " ".join(str(result.report).split())
    assert type(result.report).from_dict(result.report.to_dict()) == result.report
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(after)
    assert torch.allclose(logits(result.model), logits(model), atol=1e-4)


def test_the_states_that_it_reads_decide_what_is_kept(model: PreTrainedModel) -> None:
    """Logits of the texts are nearer than with the factors that are best in no metric."""
    dense, head = logits(model), model.get_output_embeddings()
    codes, basis, mean = low_rank(head.weight).factors(head.weight, 10)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.copy_(codes.double() @ basis + mean)
    fraction = (10 * (64 + 32) + 32) / (64 * 32)
    ours = pruned(model, Parameters({"lm_head": fraction}))
    assert ours.report.lm_head.rank == 10

    def error(model: PreTrainedModel) -> float:
        difference = logits(model) - dense
        return float((difference - difference.mean(-1, keepdim=True)).norm())

    assert error(ours.model) < 0.9 * error(other)


def test_the_error_that_is_reported_is_that_of_the_logits() -> None:
    """With each token as often in the texts, and all directions seen, but for the smoothing."""
    model = tiny_llama()
    states = torch.randn(500, 32, dtype=torch.float64) * torch.linspace(0.5, 2, 32)
    moments = states.T @ states / len(states)
    dense = weight(model.get_output_embeddings()).double()
    found = factor_own_head(model, decompose_head(model, torch.ones(64), moments), 0.5)
    after = weight(model.get_output_embeddings()).double()
    around = dense - dense.mean(0)
    errors = [float((states @ one.T).square().sum()) for one in (dense - after, around)]
    assert (errors[0] / errors[1]) ** 0.5 == pytest.approx(found.error, rel=0.02)


def test_it_loads_to_the_bit_with_and_without_the_head(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    result = pruned(model, Parameters(0.7, embeddings=0.6, lm_head=0.5))
    assert result.report.embeddings is not None
    result.save(tmp_path / "out")
    loaded = stat_prune.load(tmp_path / "out")
    assert torch.equal(logits(loaded), logits(result.model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(stat_prune.load(tmp_path / "again")), logits(result.model))
    base = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert not hasattr(base, "lm_head")
    name = next(iter(base.state_dict()))
    assert torch.equal(base.state_dict()[name], result.model.base_model.state_dict()[name])


def test_the_folder_opens_where_stat_prune_cannot_be_imported(tmp_path: Path) -> None:
    result = pruned(tiny_llama())
    result.save(tmp_path / "out")
    folders = [(tmp_path / "out", "AutoModelForCausalLM")]
    (alone,) = outputs_without_stat_prune(folders, [{"input_ids": IDS}], tmp_path, remote_code=True)
    assert torch.equal(alone, logits(result.model))


def test_a_result_is_pruned_again(model: PreTrainedModel, tmp_path: Path) -> None:
    once = pruned(model, Parameters({"lm_head": 0.8})).model
    twice = pruned(once, Parameters({"lm_head": 0.6})).model
    blocks = pruned(twice, Parameters({"neurons": 0.5})).model
    head = blocks.get_output_embeddings()
    assert head.weight.shape == twice.get_output_embeddings().weight.shape
    direct = pruned(model, Parameters({"lm_head": 0.48})).model
    dense = logits(model)
    errors = [float((logits(one) - dense).norm()) for one in (twice, direct)]
    assert errors[0] < 1.2 * errors[1]
    blocks.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(stat_prune.load(tmp_path / "out")), logits(blocks))


def test_uniform_results_keep_their_factors(tmp_path: Path) -> None:
    result = pruned(tiny_llama(), Parameters(0.6, lm_head=0.5), uniform=True)
    result.save(tmp_path / "out")
    assert torch.equal(logits(stat_prune.load(tmp_path / "out")), logits(result.model))


def test_more_tokens_can_be_added(model: PreTrainedModel, tmp_path: Path) -> None:
    result = pruned(model).model
    before = logits(result)
    result.resize_token_embeddings(70, mean_resizing=False)
    after = logits(result)
    assert after.shape[-1] == 70
    assert torch.allclose(after[..., :64], before, atol=1e-5)
    if isinstance(model, BertForMaskedLM):
        return  # resized in this way it is saved without one of its biases, by transformers
    result.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(stat_prune.load(tmp_path / "out")), after)


def test_generating_goes_on_as_one_forward_pass_does() -> None:
    model = pruned(tiny_llama()).model
    written = model.generate(IDS[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        expected = model(written).logits[0, IDS.shape[1] - 1 : -1].argmax(-1)
    assert torch.equal(written[0, IDS.shape[1] :], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    model = LlamaForCausalLM._from_config(tiny_llama().config, dtype=dtype).eval()
    result = pruned(model)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    result.save(tmp_path / "out")
    assert torch.equal(logits(stat_prune.load(tmp_path / "out")), logits(result.model))


def test_the_budget_of_a_file_is_of_the_head_too() -> None:
    model = tiny_llama()
    with torch.no_grad():  # the head has 4 directions, and the embeddings all
        torch.manual_seed(0)
        model.lm_head.weight.copy_(torch.randn(64, 4) @ torch.randn(4, 32) / 4)
    result = pruned(model, Bytes(0.75))
    report = result.report
    assert 0.7 < report.after.bytes / report.before.bytes <= 0.7501
    head, table = report.lm_head, report.embeddings
    kept = 1.0 if table is None else table.parameters / table.parameters_before
    assert head.parameters / head.parameters_before < min(kept, 0.5)
    assert f"the best of {len(head.shares)} shares" in str(head)


@pytest.mark.parametrize("tied", [True, False])
def test_multiplications_of_the_head_are_counted_where_that_is_asked_for(tied: bool) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    result = pruned(model, MACs(0.7, lm_head=True))
    report, length = result.report, IDS.shape[1]
    found = report.embeddings if tied else report.lm_head
    left = 64 * 32 if found is None else found.parameters
    before = report.before.block_macs + length * 64 * 32
    assert 0.66 < (report.after.block_macs + length * left) / before <= 0.701
    assert report.settings["target"] == repr(MACs(0.7, lm_head=True))
    counted = MACs(0.7, lm_head=True, seq_length=float(length))
    assert report.settings["chosen"]["target"] == repr(counted)


@pytest.mark.parametrize(
    ("build", "target", "error", "message"),
    [
        (lambda: tiny_llama(tie_word_embeddings=True), HALF, ModelError, "leave lm_head out"),
        (tiny_bert, HALF, ModelError, "no head of a language model"),
        (tiny_bert, MACs(0.5, lm_head=True), ModelError, "no head of a language model"),
        (tiny_llama, Parameters({"lm_head": 0.01}), TargetError, "rank 1 takes"),
        (tiny_llama, MACs(0.01, lm_head=True), TargetError, "smallest head"),
    ],
)
def test_what_is_out_of_reach_is_named_before_any_work(
    build: Any, target: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        pruned(build(), target)


def test_targets_that_say_two_things_are_refused() -> None:
    with pytest.raises(TargetError, match="lm_head=0.5"):
        MACs({"lm_head": 0.5})
    with pytest.raises(TargetError, match="counts the head with all blocks"):
        MACs(0.5, embeddings=0.5, lm_head=True)
    with pytest.raises(TargetError, match="counts a head of its own, too"):
        Parameters(0.6, embeddings=True, lm_head=0.5)
    with pytest.raises(TargetError, match="says twice"):
        Parameters({"lm_head": 0.5}, lm_head=0.5)
    with pytest.raises(TargetError, match="lie in"):
        MACs(0.5, lm_head=2)


def test_states_without_end_are_named() -> None:
    model = tiny_llama()
    rows = [{"input_ids": ids} for ids in IDS[:10]]
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(stat_prune.errors.StatPruneError, match=r"head reads|finite"):
        pruned(model, HALF, rows)


def test_a_bias_stays() -> None:
    model = tiny_bert(BertForMaskedLM, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().bias.uniform_(-1, 1)
    result = pruned(model)
    assert torch.equal(
        result.model.get_output_embeddings().bias, model.get_output_embeddings().bias
    )


@pytest.mark.parametrize("program", ["llama.cpp", "mlx", "vllm"])
def test_programs_without_a_form_for_factors_are_named(program: str) -> None:
    for target in (HALF, Bytes(0.6)):
        with pytest.raises(SettingsError, match="two factors"):
            pruned(tiny_llama(), target, serve_with=program)
