"""What a method with a pipeline of its own says that it can; the rest is refused before work."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tiny_models import tiny_bert
from transformers import MixtralConfig, MixtralForCausalLM

import stat_prune
from stat_prune import Baseline, Latency, MACs
from stat_prune.choosing.planned import plan_of
from stat_prune.errors import LatencyWarning, ModelError, SettingsError, TargetError
from stat_prune.measuring.collectors import collect_moments
from stat_prune.measuring.statistics import statistics_of
from stat_prune.settings.methods import BASELINES

TOKENS = torch.randint(5, 40, (24, 9), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": tokens} for tokens in TOKENS]


def first_half(run, budget):
    """The first half of the units of every block."""
    moments = collect_moments(run.model, run.blocks, run.calibration.batches)
    found = statistics_of(run.model.base_model, run.blocks, moments, absorb_mean=False)
    return [plan_of(one, torch.arange(one.block.num_units // 2)) for one in found]


def prune(model=None, *, method=first_half, target=None, able=(), **options):
    method = Baseline("first half", method, **dict.fromkeys(able, True))
    return stat_prune.prune(
        model or tiny_bert(), ROWS, target=target or MACs(0.5), method=method, progress=False,
        **options,
    )  # fmt: skip


def mixtral():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=4,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def test_one_size_for_all_layers():
    target = MACs({"neurons": 0.5})
    with pytest.raises(SettingsError, match="has no uniform mode"):
        prune(target=target, uniform=True)
    result = prune(target=target, uniform=True, able=["uniform"])
    assert result.model.config.intermediate_size == 24
    assert not hasattr(result.model.config, "stat_prune")


def test_one_size_for_the_experts_of_a_layer():
    target = MACs({"neurons": 0.5})
    with pytest.raises(ModelError, match="share one"):
        prune(mixtral(), target=target)
    result = prune(mixtral(), target=target, able=["experts"])
    experts = [row for row in result.report.blocks if row.kind == "neurons"]
    assert len(experts) == 8 and {row.kept for row in experts} == {8}


def test_a_time(linear_clock):
    with pytest.raises(TargetError, match="cannot aim at a time"):
        prune(target=Latency(0.9))
    seen = []

    def timed(run, budget):
        seen.append(budget.cost(run.blocks[0], 1, 1))
        return first_half(run, budget)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LatencyWarning)  # it aims at nothing
        result = prune(method=timed, target=Latency(0.9), able=["times"])
    assert len(seen) == 1 and result.report.speed is not None


def test_to_be_taken_up_again(tmp_path):
    calls = []

    def counted(run, budget):
        calls.append(budget)
        return first_half(run, budget)

    kept = {"work_dir": tmp_path / "work", "output_dir": tmp_path / "saved"}
    with pytest.raises(SettingsError, match="cannot be taken up again"):
        prune(method=counted, **kept)
    assert not calls
    made = [prune(method=counted, able=["resumes"], **kept) for _ in range(2)]
    assert len(calls) == 1 and made[0].plan == made[1].plan


def test_what_is_not_said_leaves_no_trace_in_a_report():
    method = prune().report.settings["method"]
    assert "uniform" not in method and "resumes" not in method
    assert "uniform=True" in prune(able=["uniform"]).report.settings["method"]


def test_the_published_are_declared_under_their_names():
    assert list(BASELINES) == [one.name for one in BASELINES.values()]
    assert len(BASELINES) == 9 and "stat" not in BASELINES and BASELINES.get("stat") is None
    json.dumps([repr(one) for one in BASELINES.values()])
