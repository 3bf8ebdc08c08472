"""Layer by layer, embeddings become the factors that they become in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_prune_checkpoint import LIKE, MODELS, TEXTS, assert_same, saved
from tiny_models import tiny_llama

import stat_prune
from stat_prune import Bytes, MACs, Parameters
from stat_prune.surgery.token_tables import find_table, own_head

ALONE = Parameters({"embeddings": 0.5})


def tables_of(model) -> dict[str, torch.Tensor]:
    """Of the embeddings, and of heads that share them."""
    table = find_table(model)
    modules = [model.base_model.get_submodule(table.path)]
    modules += [model.get_submodule(path) for path in table.tied_heads]
    return {
        f"{number}.{name}": tensor
        for number, module in enumerate(modules)
        for name, tensor in module.state_dict().items()
    }


def tables_are_equal(found, wanted) -> bool:
    """To the bit, with those of a head of its own."""
    pairs = (tables_of(found), tables_of(wanted))
    head = own_head(wanted)
    if head is not None:
        pairs = (pairs[0] | own_head(found).state_dict(), pairs[1] | head.state_dict())
    return pairs[0].keys() == pairs[1].keys() and all(
        torch.equal(pairs[0][name], tensor) for name, tensor in pairs[1].items()
    )


@pytest.mark.parametrize("name", ["bert", "llama", "llama-tied", "llama-bfloat16"])
@pytest.mark.parametrize("target", [Parameters(0.6, embeddings=0.5), ALONE], ids=str)
def test_the_factors_are_those_of_prune_in_memory(
    name: str, target: Parameters, tmp_path: Path, word_tokenizer
) -> None:
    model = saved(MODELS[name](), tmp_path / "dense", word_tokenizer)
    options = {"target": target, "passes": 1, **LIKE}
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
    )

    report, expected = pruned.report, whole.report
    assert report.embeddings == expected.embeddings and report.embeddings.rank > 0
    assert report.before == expected.before
    found = stat_prune.load(pruned.directory)
    assert found.num_parameters() == report.after.parameters
    assert tables_are_equal(found, whole.model)
    # Starts are compared on models that have the factors.
    assert_same(whole, pruned)
    if report.search is not None:
        assert report.search.starts == pytest.approx(whole.report.search.starts, rel=1e-3)
    if target == ALONE:
        assert report.after == expected.after
        ids = torch.arange(3, 19)[None]
        assert torch.equal(found(ids)[0], whole.model(ids)[0])


@pytest.mark.parametrize(
    "target",
    [
        Parameters({"lm_head": 0.5}),
        Parameters(0.6, lm_head=0.5),
        MACs(0.6, embeddings=0.6, lm_head=0.4),
        # Of the last layer no block is measured, and the head reads what it returns.
        Parameters({"neurons": 0.6}, lm_head=0.5),
    ],
    ids=str,
)
def test_a_head_of_its_own_becomes_the_factors_that_it_becomes_in_memory(
    target, tmp_path: Path, word_tokenizer
) -> None:
    model = saved(MODELS["llama"](), tmp_path / "dense", word_tokenizer)
    options = {"target": target, "passes": 1, "batch_size": 7, "ignore": [2], **LIKE}
    if target == Parameters({"lm_head": 0.5}):
        del options["ignore"]
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
    )

    report, expected = pruned.report, whole.report
    assert report.lm_head == expected.lm_head and report.lm_head.rank > 0
    assert (report.embeddings, report.after) == (expected.embeddings, expected.after)
    assert_same(whole, pruned)
    found = stat_prune.load(pruned.directory)
    assert tables_are_equal(found, whole.model)
    ids = torch.arange(3, 19)[None]
    torch.testing.assert_close(found(ids)[0], whole.model(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tied", "target"),
    [
        (True, Bytes(0.4)),
        (False, Bytes(0.4)),
        (True, Parameters(0.4, embeddings=True)),
        (False, MACs(0.4, lm_head=True)),
    ],
    ids=str,
)
def test_one_budget_is_shared_out_as_in_memory(
    tied: bool, target, tmp_path: Path, word_tokenizer
) -> None:
    model = tiny_llama(num_hidden_layers=3, vocab_size=256, tie_word_embeddings=tied)
    model = saved(model, tmp_path / "dense", word_tokenizer)
    options = {"target": target, "passes": 1, **LIKE}
    whole = stat_prune.prune(model, TEXTS, tokenizer=word_tokenizer, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "dense", TEXTS, output_dir=tmp_path / "out", **options
    )

    assert_same(whole, pruned)
    report, expected = pruned.report, whole.report
    assert report.after == expected.after
    for found, wanted in (
        (report.embeddings, expected.embeddings),
        (report.lm_head, expected.lm_head),
    ):
        assert (found is None) == (wanted is None)
        if found is None:
            continue
        assert found.rank == wanted.rank and found.num_exact == wanted.num_exact
        # In memory, too, several are compared, and the nearest few on what is held out.
        assert len(found.shares) > len(found.corrected) == 3
        assert found.shares == pytest.approx(wanted.shares, rel=1e-4)
        assert found.corrected == pytest.approx(wanted.corrected, rel=1e-4)
    assert report.embeddings or report.lm_head
    assert tables_are_equal(stat_prune.load(pruned.directory), whole.model)


def test_a_factored_head_becomes_smaller_once_more(tmp_path: Path, word_tokenizer) -> None:
    options = {"tokenizer": word_tokenizer, **LIKE}
    first = Parameters(0.8, lm_head=0.7)
    stat_prune.prune(MODELS["llama"](), TEXTS, target=first, **options).save(tmp_path / "once")
    options |= {"target": Parameters(0.8, lm_head=0.7), "passes": 1}
    whole = stat_prune.prune(stat_prune.load(tmp_path / "once"), TEXTS, **options)

    pruned = stat_prune.prune_checkpoint(
        tmp_path / "once", TEXTS, output_dir=tmp_path / "twice", **options
    )

    assert pruned.report.lm_head == whole.report.lm_head
    assert_same(whole, pruned)
    assert tables_are_equal(stat_prune.load(pruned.directory), whole.model)


@pytest.mark.parametrize(
    ("target", "broken_in"),
    [
        (MACs(0.6, embeddings=0.5), "stored_model.save_checkpoint"),
        (MACs(0.6, embeddings=0.5), "variants.VariantPass._fold"),
        (Parameters(0.6, lm_head=0.5), "variants.VariantPass._distances"),
        (Parameters(0.6, lm_head=0.5), "layer_pass.head_moments"),
        (Bytes(0.6), "comparing.Comparison.corrected"),
        (Bytes(0.6), "comparing.Comparison.choose"),
    ],
    ids=str,
)
def test_a_run_that_was_broken_off_is_taken_up(
    target, broken_in: str, tmp_path, word_tokenizer, monkeypatch
) -> None:
    saved(MODELS["llama"](), tmp_path / "dense", word_tokenizer)
    options = {"target": target, **LIKE}

    def pruned(folder: str, **more):
        return stat_prune.prune_checkpoint(
            tmp_path / "dense", TEXTS, output_dir=tmp_path / folder, **options, **more
        )

    expected = stat_prune.load(pruned("whole").directory).state_dict()

    def broken(*_args, **_named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"stat_prune.pipeline.on_disk.{broken_in}", broken)
        pruned("out")
    found = stat_prune.load(pruned("out", resume=True).directory).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("target", [MACs(0.7), Parameters(0.7, embeddings=0.6)], ids=str)
def test_what_is_factored_already_is_pruned_as_in_memory(
    tied: bool, target: MACs | Parameters, tmp_path: Path, word_tokenizer
) -> None:
    dense = tiny_llama(num_hidden_layers=3, tie_word_embeddings=tied)
    first = Parameters(0.8, embeddings=0.6, lm_head=None if tied else 0.6)
    once = stat_prune.prune(dense, TEXTS, target=first, tokenizer=word_tokenizer, **LIKE)
    assert once.report.embeddings.num_exact and once.report.embeddings.tied_heads == (
        ["lm_head"] if tied else []
    )
    once.save(tmp_path / "once")
    options = {"target": target, "passes": 1, **LIKE}
    whole = stat_prune.prune(
        stat_prune.load(tmp_path / "once"), TEXTS, tokenizer=word_tokenizer, **options
    )

    twice = stat_prune.prune_checkpoint(
        tmp_path / "once", TEXTS, output_dir=tmp_path / "twice", **options
    )

    assert_same(whole, twice)
    assert twice.report.after == whole.report.after
    assert tables_are_equal(stat_prune.load(twice.directory), whole.model)
