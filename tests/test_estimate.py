"""`stat-prune plan`: what is foreseen from a config is what comes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_models import tiny_bert, tiny_llama
from transformers import AlbertConfig, BertForSequenceClassification, LlamaConfig, ViTConfig

import stat_prune
from stat_prune.errors import LoadError, TargetError
from stat_prune.pipeline.foreseeing import estimate as estimating
from stat_prune.pipeline.foreseeing.estimate import estimate
from stat_prune.pipeline.foreseeing.rates import BlockSeconds, Rates
from stat_prune.pipeline.foreseeing.search_cost import SearchCost


@pytest.fixture
def steady_machine(monkeypatch):
    """One of which every part takes the same time whenever it is measured."""
    monkeypatch.setattr(estimating, "measure_rates", lambda *_args: Rates(1e-11, 1e-11))
    each = BlockSeconds(0.1, (0.1, 0.1), factor=0.1, trial=0.01)
    monkeypatch.setattr(estimating, "block_seconds", lambda *_args: each)
    monkeypatch.setattr(estimating, "taken_memory", lambda _device: 0)


def test_a_search_is_foreseen_by_its_effort(steady_machine):
    config = config_of(hidden_size=64, intermediate_size=128, num_hidden_layers=4)

    def foreseen(**options):
        return estimate(config, target=stat_prune.MACs(0.7), seq_length=64, **options)

    fast, normal, thorough = (foreseen(effort=name) for name in ("fast", "normal", "thorough"))
    times = [found.seconds["search the budget"] for found in (fast, normal, thorough)]
    assert 0 < times[0] < times[1] < times[2]
    assert fast.memory <= normal.memory <= thorough.memory
    assert fast.memory_by_layer == thorough.memory_by_layer
    assert "second pass" not in fast.seconds
    twice = foreseen(passes=2)
    assert twice.seconds["second pass"] == thorough.seconds["second pass"] > 0
    assert normal.seconds["second pass"] == twice.seconds["second pass"]
    assert normal.memory <= twice.memory
    assert twice.memory_by_layer is None
    once = foreseen(passes=1)
    assert "second pass" not in once.seconds
    probed = foreseen(method="id-probed")
    assert "search the budget" not in probed.seconds
    assert probed.memory <= fast.memory
    assert foreseen().seconds == normal.seconds


@pytest.mark.parametrize("effort", ["fast", "normal", "thorough"])
@pytest.mark.parametrize("build", [tiny_llama, lambda: tiny_bert(BertForSequenceClassification)])
def test_a_search_computes_no_more_than_was_foreseen(build, effort):
    ids = torch.randint(3, 40, (72, 9), generator=torch.Generator().manual_seed(0))
    model = build()
    search = stat_prune.prune(
        model,
        [{"input_ids": row} for row in ids],
        target=stat_prune.MACs(0.5),
        num_calibration_samples=64,
        effort=effort,
        progress=False,
    ).report.search
    by_token = not type(model).__name__.endswith("SequenceClassification")
    second_pass = effort != "fast"
    most = SearchCost.of(64, by_token=by_token, effort=effort, second_pass=second_pass)
    # A round ends behind the evaluation with which what it may spend is spent.
    assert 0.2 * most.passes < search.passes <= most.passes + len(search.rounds)


def config_of(**sizes):
    config = LlamaConfig(**sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "bfloat16"
    return config


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        ({}, 6_738_415_616),
        (
            {
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
            },
            68_976_648_192,
        ),
    ],
    ids=["Llama-2-7B", "Llama-2-70B"],
)
def test_sizes_of_large_models_are_the_published_ones(sizes, parameters, steady_machine):
    found = estimate(config_of(**sizes), target=stat_prune.Parameters(0.7))
    assert found.before.parameters == parameters
    assert found.before.bytes == 2 * parameters
    assert found.after.block_parameters == pytest.approx(0.7 * found.before.block_parameters)
    assert found.memory_by_layer < found.before.bytes < found.memory


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_the_pruned_size_is_foreseen(build, tmp_path):
    model = build(intermediate_size=200)
    model.save_pretrained(tmp_path)
    target = stat_prune.Parameters(0.6)
    found = estimate(tmp_path, target=target, seq_length=9)
    ids = torch.randint(3, 40, (64, 9), generator=torch.Generator().manual_seed(0))
    report = stat_prune.prune(
        model, [{"input_ids": row} for row in ids], target=target, progress=False
    ).report
    assert found.before == report.before
    assert found.after.parameters == pytest.approx(report.after.parameters, rel=0.02)
    # Cutting is a matter of milliseconds, and how data are read depends on what they are.
    left_out = ("read data", "cut")
    assert list(found.seconds) == [name for name in report.seconds if name not in left_out]
    assert all(seconds > 0 for seconds in found.seconds.values())


@pytest.mark.parametrize(
    "target",
    [
        stat_prune.Bytes(0.6),
        stat_prune.Parameters(0.6, embeddings=0.5, lm_head=0.4),
        stat_prune.MACs(0.6, lm_head=True),
    ],
    ids=repr,
)
def test_the_size_is_foreseen_where_embeddings_and_head_are_factored(target, tmp_path):
    model = tiny_llama(intermediate_size=200)
    model.save_pretrained(tmp_path)
    found = estimate(tmp_path, target=target, seq_length=9)
    ids = torch.randint(3, 40, (64, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids]
    report = stat_prune.prune(model, rows, target=target, effort="fast", progress=False).report
    if isinstance(target, stat_prune.Bytes):  # however it is shared out
        assert found.after.bytes == pytest.approx(0.6 * found.before.bytes, rel=0.03)
        assert found.after.bytes == pytest.approx(report.after.bytes, rel=0.05)
    elif target.is_joint:
        assert found.after.parameters < found.before.parameters
    else:
        assert found.after.parameters == pytest.approx(report.after.parameters, rel=0.02)


def test_layer_by_layer_factors_and_shared_budgets_take_more_memory(steady_machine):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32_000, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    blocks, head, shared = (
        estimate(config, target=target, seq_length=64)
        for target in (
            stat_prune.Parameters(0.6),
            stat_prune.Parameters(0.6, lm_head=0.5),
            stat_prune.Bytes(0.6),
        )
    )
    assert blocks.memory_by_layer < head.memory_by_layer < shared.memory_by_layer


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_rows_beside_factors_are_foreseen(dtype, round_to, steady_machine, tmp_path):
    """They fill what the rank leaves of the fraction, to less than a row."""
    model = tiny_llama(tie_word_embeddings=True, vocab_size=512, dtype=dtype)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    target = stat_prune.Parameters(1.0, embeddings=0.5)  # blocks stay as they are
    found = estimate(tmp_path, target=target, seq_length=16, round_to=round_to)
    # Each token is read as often as suits its number, so that some are worth being exact.
    ids = (torch.rand(256, 16, generator=torch.Generator().manual_seed(0)) ** 4 * 500).long() + 3
    rows = [{"input_ids": row} for row in ids]
    options = {"effort": "fast", "passes": 1, "round_to": round_to, "progress": False}
    pruned = stat_prune.prune(model, rows, target=target, **options)
    report, size = pruned.report, model.dtype.itemsize
    row = (32 + 2) * size
    assert report.embeddings.num_exact
    assert found.before == report.before
    assert found.after.bytes == pytest.approx(report.after.bytes, abs=row)
    assert found.after.parameters == pytest.approx(
        report.after.parameters, abs=32 + 4 // size * report.embeddings.num_exact
    )
    # So are those of a result that is pruned again.
    pruned.save(tmp_path / "once")
    again = estimate(tmp_path / "once", target=target, seq_length=16, round_to=round_to)
    twice = stat_prune.prune(pruned.model, rows, target=target, **options).report
    assert again.before == twice.before == report.after
    assert again.after.bytes == pytest.approx(twice.after.bytes, abs=row)


@pytest.mark.parametrize(
    "fractions", [{"embeddings": 0.5}, {"lm_head": 0.4}, {"embeddings": 0.3, "lm_head": 0.6}]
)
def test_sizes_and_ranks_of_factors_alone_are_foreseen(fractions, tmp_path):
    model, target = tiny_llama(vocab_size=512), stat_prune.Parameters(fractions)
    model.save_pretrained(tmp_path)
    found = estimate(tmp_path, target=target, seq_length=16)
    ids = torch.randint(3, 500, (64, 16), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids]
    report = stat_prune.prune(model, rows, target=target, progress=False).report
    assert found.before == report.before
    assert found.after.parameters == pytest.approx(report.after.parameters, rel=0.02)
    assert found.after.bytes == pytest.approx(report.after.bytes, rel=0.02)
    assert found.after.block_macs == report.after.block_macs
    factored = {"embeddings": report.embeddings, "lm_head": report.lm_head}
    made = {name: one.rank for name, one in factored.items() if one is not None}
    assert found.ranks.keys() == made.keys() == fractions.keys()
    assert all(0 < made[name] <= rank for name, rank in found.ranks.items())
    assert found.memory is None and not found.seconds
    assert "nothing but factors" in found.in_one_line()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "fisher"},
        {"method": "flap"},
        {"method": "grail"},
        {"method": "corp"},
        {"method": "attention-entropy"},
        {"remove_blocks": True},
        {"head_dims": True},
        {"finish": "scales"},
    ],
    ids=str,
)
def test_sizes_alone_are_foreseen_where_more_than_these_stages_is_gone_through(settings, tmp_path):
    model = tiny_bert(BertForSequenceClassification, intermediate_size=200)
    model.save_pretrained(tmp_path)
    heads_only = settings.get("method") == "attention-entropy"
    target = stat_prune.MACs({"heads": 0.5} if heads_only else 0.6)
    found = estimate(tmp_path, target=target, seq_length=9, **settings)
    ids = torch.randint(3, 40, (64, 9), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row} for row in ids]
    report = stat_prune.prune(model, rows, target=target, progress=False, **settings).report
    assert found.before == report.before
    # Heads are few here, and budgets are not used up with them.
    assert found.after.block_macs == pytest.approx(report.after.block_macs, rel=0.1)
    assert found.after.parameters == pytest.approx(report.after.parameters, rel=0.1)
    assert found.memory is None and found.memory_by_layer is None and not found.seconds
    assert next(iter(settings)) in found.in_one_line()


def test_where_the_model_is_cut_is_nothing_to_a_plan(steady_machine):
    found = estimate(config_of(), target=stat_prune.MACs(0.6), inplace=True)
    assert found.memory == estimate(config_of(), target=stat_prune.MACs(0.6)).memory


def test_what_a_method_has_no_place_for_is_refused_in_its_plan():
    with pytest.raises(TargetError, match="'fisher' takes one fraction"):
        estimate(config_of(), target=stat_prune.Tolerance(0.1), method="fisher")
    with pytest.raises(TargetError, match="'fisher' cannot aim at a time"):
        estimate(config_of(), target=stat_prune.Speedup(2.0), method="fisher")


PEAK = """
import torch, stat_prune
from stat_prune.pipeline.foreseeing.estimate import estimate
from transformers import BertConfig, BertForMaskedLM

config = BertConfig(num_hidden_layers=3, intermediate_size=2048)
target = stat_prune.MACs(0.5)
config.architectures = ["BertForMaskedLM"]
settings = {"num_calibration_samples": 16, "batch_size": 8}
found = estimate(config, target=target, seq_length=32, **settings)
ids = torch.randint(3, 1000, (16, 32))
report = stat_prune.prune(
    BertForMaskedLM(config).eval(),
    [{"input_ids": row} for row in ids],
    target=target,
    progress=False,
    **settings,
).report
print(found.memory / report.peak_memory)
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_foreseen():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK], capture_output=True, text=True, check=True
    )
    assert 0.75 <= float(done.stdout) <= 1.25


def test_layers_that_share_weights_are_pruned_in_memory_only():
    config = AlbertConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        embedding_size=16, vocab_size=64,
    )  # fmt: skip
    config.architectures = ["AlbertForMaskedLM"]
    assert estimate(config, target=stat_prune.MACs(0.7)).memory_by_layer is None


def test_the_length_of_a_target_is_that_of_texts_and_not_of_images(steady_machine):
    config = ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=4,
    )  # fmt: skip
    config.architectures = ["ViTForImageClassification"]
    target = stat_prune.MACs(0.7, seq_length=9)
    assert estimate(config, target=target, seq_length=17).seq_length == 17
    assert estimate(config_of(), target=target, seq_length=17).seq_length == 9


def test_as_much_is_foreseen_as_there_are_examples(steady_machine):
    torch.manual_seed(0)
    lengths = [4, 4, 6, 6, 10]
    rows = [{"input_ids": torch.randint(5, 60, (length,))} for length in lengths]
    target, settings = stat_prune.MACs(0.7), {"batch_size": 2}
    found = estimate(config_of(), target=target, dataset=rows, **settings)
    assert (found.num_samples, found.seq_length) == (5, 6.0)
    # All as long as the longest would take more.
    longest = estimate(
        config_of(), target=target, seq_length=10, num_calibration_samples=5, **settings
    )
    assert found.seconds["collect"] < longest.seconds["collect"]
    assert found.memory <= longest.memory
    shorter = estimate(config_of(), target=target, dataset=rows, max_seq_length=4, **settings)
    assert shorter.seq_length == 4.0


def test_a_time_is_foreseen_with_what_timing_takes(steady_machine):
    found = estimate(config_of(), target=stat_prune.Speedup(2.0))
    alike = estimate(config_of(), target=stat_prune.MACs(0.5))
    assert found.after == alike.after and found.memory_by_layer is None
    timing = found.seconds.pop("time")
    assert found.seconds == alike.seconds
    longer = estimate(config_of(), target=stat_prune.Speedup(2.0, batch_size=4)).seconds["time"]
    assert 0 < timing < longer
    with pytest.raises(TargetError, match=r"beyond the model's \d+ positions"):
        estimate(config_of(), target=stat_prune.Speedup(2.0, seq_length=10**6))


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(LoadError, match="neither a folder with config.json nor"):
        estimate(tmp_path / "nothing", target=stat_prune.MACs(0.5))
    with pytest.raises(TargetError, match="below the least that can be reached"):
        estimate(config_of(), target=stat_prune.MACs(0.001))
