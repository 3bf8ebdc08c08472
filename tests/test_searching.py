"""`budget="searched"`: whole pruned models are measured, and no simpler budget does better."""

from __future__ import annotations

import json

import pytest
import torch
from test_experts import mixtral
from tiny_models import SIZES, tiny_bert, tiny_llama
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertForMaskedLM,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

import stat_prune
from stat_prune import MACs, Parameters, Speedup, Tolerance
from stat_prune.errors import SettingsError
from stat_prune.families import find_blocks
from stat_prune.measuring.objectives import output_distance
from stat_prune.measuring.sensitivity import distance
from stat_prune.pipeline import loaded_model, stages
from stat_prune.pipeline.budgeting.starts import EXPONENTS
from stat_prune.reporting.report import PruningReport
from stat_prune.settings.settings import MIN_HELD_OUT

LENGTH = 9
#: Four by four patches, and the token of the class.
IMAGE, PATCHES = (3, 16, 16), 17
VISION = SIZES | {"image_size": 16, "patch_size": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def built(model_class, config):
    torch.manual_seed(0)
    return model_class(config).eval()


MODELS = {
    "Bert": lambda: tiny_bert(BertForMaskedLM),
    "Llama": tiny_llama,
    "Mixtral": mixtral,
    # Two layers of each of two sets of weights.
    "Albert": lambda: built(
        AlbertForMaskedLM,
        AlbertConfig(
            **SIZES | {"num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16}
        ),
    ),
    "GPT2": lambda: built(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_inner=48),
    ),
    "T5": lambda: built(
        T5ForConditionalGeneration,
        T5Config(vocab_size=64, decoder_start_token_id=0, initializer_factor=2.0, **T5),
    ),
    "CLIP": lambda: built(
        CLIPModel,
        CLIPConfig(text_config=SIZES, vision_config=VISION, projection_dim=16),
    ),
}


def rows(count: int, seed: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"input_ids": torch.randint(3, 40, (LENGTH,), generator=generator)} for _ in range(count)
    ]


def pruned(model=None, data=None, **options):
    """With 64 calibration sequences and 8 held out, so that there is a search."""
    settings = {"target": MACs(0.5), "num_calibration_samples": 64, "progress": False} | options
    model = tiny_bert() if model is None else model
    return stat_prune.prune(model, rows(72) if data is None else data, **settings)


def with_images(data):
    """Rows with an image each; half of what it shows is the same in all."""
    generator = torch.Generator().manual_seed(5)
    common = torch.randn(IMAGE, generator=generator)
    images = common + torch.randn(len(data), *IMAGE, generator=generator)
    return [row | {"pixel_values": one} for row, one in zip(data, images, strict=True)]


def measured(dense, result, data) -> float:
    batch = {"input_ids": torch.stack([row["input_ids"] for row in data])}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return distance(dense, result.model, [batch], output_distance)


def deep() -> torch.nn.Module:
    return tiny_llama(num_hidden_layers=6)


def mislead(monkeypatch) -> None:
    """Probes that give the first half of the layers away, as those of deep models do."""
    real = stages.sensitivities

    def misled(source, measured):
        weights = real(source, measured)
        half = max(one.block.layer for one in measured) / 2
        return weights and [
            weight * (1e-6 if one.block.layer < half else 1.0)
            for weight, one in zip(weights, measured, strict=True)
        ]

    monkeypatch.setattr(stages, "sensitivities", misled)


@pytest.mark.parametrize("effort", ["fast", "normal", "thorough"])
def test_probes_that_mislead_are_not_followed(effort, monkeypatch):
    mislead(monkeypatch)
    data = rows(72)
    distances = {
        budget: measured(deep(), pruned(deep(), data, budget=budget, effort=effort), data)
        for budget in ("searched", "probed", "unweighted", "even")
    }
    assert distances["searched"] < 0.5 * distances["probed"]
    assert distances["searched"] <= 1.02 * min(distances.values())


def test_starts_are_as_far_away_as_models_that_are_really_pruned_so():
    """On 16 sequences all are compared on all."""
    data = rows(16)
    search = pruned(deep(), data, effort="fast").report.search
    names = {"probed": "probes^1", "unweighted": "unweighted", "even": "even"}
    assert search.sequences == 16
    found = {
        budget: measured(deep(), pruned(deep(), data, budget=budget), data) for budget in names
    }
    compared = {budget: name for budget, name in names.items() if name in search.starts}
    assert compared
    for budget, name in compared.items():
        assert search.starts[name] == pytest.approx(found[budget], rel=1e-3)
    taken = measured(deep(), pruned(deep(), data, effort="fast"), data)
    assert taken == pytest.approx(search.starts[search.taken], rel=1e-3)


def test_a_thorough_search_tries_a_second_pass_unless_passes_say_otherwise():
    reports = [pruned(effort="thorough", **asked).report for asked in ({}, {"passes": 1})]
    assert reports[0].second_pass["distances"]
    assert reports[1].second_pass is None


def test_each_effort_does_what_it_says():
    fast, normal, thorough = (
        pruned(effort=effort, passes=1).report.search for effort in ("fast", "normal", "thorough")
    )
    assert fast.rounds == [] and fast.held_out == {} and fast.taken in fast.starts
    assert 0 < len(normal.rounds) < len(thorough.rounds)
    assert fast.passes < normal.passes < thorough.passes
    for search in (normal, thorough):
        assert all(one.after <= one.before for one in search.rounds)
        assert [one.sequences for one in search.rounds] == sorted(
            one.sequences for one in search.rounds
        )
        if any(one.accepted for one in search.rounds):
            assert search.held_out_sequences == 8
            # All of them, whatever the first sequences say.
            assert len(search.held_out) == 1 + sum(one.accepted > 0 for one in search.rounds)
            # The start is judged beside what was found; the nearest is taken.
            assert next(iter(search.held_out)) in search.starts
            assert search.taken == min(search.held_out, key=search.held_out.__getitem__)
    assert set(fast.starts) <= {
        "even",
        "unweighted",
        *(f"probes^{power:g}" for power in EXPONENTS if power),
    }


def test_before_a_second_pass_only_a_thorough_search_goes_on():
    """Unless no consumer is moved by it: there nothing makes up for what is not searched for."""
    normal, thorough = (pruned(effort=effort).report for effort in ("normal", "thorough"))
    assert normal.second_pass and thorough.second_pass
    assert normal.search.rounds == [] and thorough.search.rounds
    albert = pruned(MODELS["Albert"]()).report
    assert albert.second_pass and albert.search.rounds


@pytest.mark.parametrize("count", [16, 71, 72])
def test_few_examples_are_not_split_and_only_starts_are_compared(count):
    result = pruned(data=rows(count), num_calibration_samples=512, passes=1)
    searched = count == 72
    assert bool(result.report.search.rounds) == searched
    held_out = MIN_HELD_OUT if searched else 0
    assert f"{count - held_out} sequences" in result.report.calibration_text()


@pytest.mark.parametrize("num_samples", [8, 16, 40])
def test_what_is_held_out_is_never_less_than_tells_anything(num_samples):
    report = pruned(data=rows(100), num_calibration_samples=num_samples).report
    assert f"{num_samples} sequences" in report.calibration_text()
    assert report.search.held_out_sequences in (0, MIN_HELD_OUT)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("Llama", {"uniform": True}),
        ("Bert", {"round_to": 8}),
        ("Bert", {"remove_blocks": True, "target": MACs(0.2)}),
        ("Llama", {"ignore": [0], "target": MACs(0.8)}),
        ("Bert", {"target": MACs({"heads": 0.5})}),
        ("Llama", {"target": Parameters({"heads": 0.75, "neurons": 0.4})}),
        ("GPT2", {"target": Parameters(0.6)}),
        ("Mixtral", {}),
        ("T5", {}),
        ("Albert", {}),
        ("CLIP", {}),
        ("CLIP", {"target": Parameters(0.6)}),
    ],
    ids=str,
)
def test_every_budget_is_kept(model, options):
    options = {"target": MACs(0.5), "passes": 1} | options
    dense = MODELS[model]()
    result = pruned(dense, with_images(rows(72)) if model == "CLIP" else None, **options)
    report, target = result.report, options["target"]
    assert report.search.rounds
    measure = "macs" if isinstance(target, MACs) else "parameters"
    for kind, fraction in target.fractions().items():
        blocks = [
            [b for b in find_blocks(one) if kind in ("all", b.kind)]
            for one in (dense, result.model)
        ]
        lengths = {
            b.mask: float(PATCHES if b.mask == "patch_mask" else LENGTH) for b in find_blocks(dense)
        }
        full, left = (
            sum(
                b.macs(b.num_units, b.num_groups, lengths)
                if measure == "macs"
                else b.parameters(b.num_units, b.num_groups)
                for b in some
            )
            for some in blocks
        )
        assert 0 < left <= fraction * full * (1 + 1e-9)
    for row in report.blocks:
        if options.get("round_to"):
            assert row.kind == "heads" or row.kept % 8 == 0
        if row.layer in options.get("ignore", []):
            assert row.kept == row.total
    if options.get("uniform"):
        by_kind = {
            kind: {r.kept for r in report.blocks if r.kind == kind} for kind in ("heads", "neurons")
        }
        assert all(len(sizes) == 1 for sizes in by_kind.values())
    if model == "Mixtral":
        for layer in range(2):
            sizes = {r.kept for r in report.blocks if r.layer == layer and "expert" in r.name}
            assert len(sizes) == 1


def test_a_time_is_kept_to_and_all_that_is_compared_takes_as_much(linear_clock):
    result = pruned(target=Speedup(1.5), passes=1)
    assert result.report.search.rounds
    assert result.report.speed.speed_up >= 1.5 * 0.97
    assert "search the budget" in result.report.seconds


def test_a_family_is_searched_member_by_member():
    targets = [MACs(0.7), MACs(0.4)]
    members = stat_prune.prune_family(
        tiny_bert(), rows(72), targets=targets, num_calibration_samples=64, progress=False
    )
    for target, member in zip(targets, members, strict=True):
        alone = pruned(target=target)
        assert member.plan == alone.plan
        first, second = member.report.search, alone.report.search
        assert (first.starts, first.rounds, first.taken) == (
            second.starts,
            second.rounds,
            second.taken,
        )


def test_a_choice_that_was_made_is_not_searched_for_again(tmp_path, monkeypatch):
    expected = pruned()

    class Stop(Exception):
        pass

    def stop(*_args, **_kwargs):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(stages, "_finished", stop)
        pruned(work_dir=tmp_path / "work")
    monkeypatch.setattr(stages, "choose_sizes", stop)
    result = pruned(work_dir=tmp_path / "work")
    assert result.report.search == expected.report.search
    assert result.plan == expected.plan
    weights = expected.model.state_dict()
    for name, weight in result.model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_the_search_survives_the_report_on_disk():
    report = pruned(passes=1).report
    restored = PruningReport.from_dict(json.loads(report.to_json()))
    assert restored == report and restored.search.rounds
    assert str(report.search) in " ".join(str(report).split())


def test_the_same_model_comes_of_batches_of_any_size():
    one, other = (pruned(batch_size=size, passes=1) for size in (1, 32))
    assert one.plan == other.plan
    first, second = one.report.search, other.report.search
    assert [r.evaluations for r in first.rounds] == [r.evaluations for r in second.rounds]
    assert first.passes == pytest.approx(second.passes)


@pytest.mark.parametrize(
    ("passes", "rounds"), [(1, 1), (2, 0)], ids=["with a round", "with a second pass"]
)
def test_the_dense_model_is_left_as_it_was(passes, rounds):
    model = tiny_bert(BertForSequenceClassification).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = pruned(model, passes=passes)
    assert len(result.report.search.rounds) == rounds
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_methods_may_be_searched_for_and_other_budgets_are_not():
    assert pruned(method="obs", budget="searched").report.search is not None
    assert pruned(method="obs").report.search is None
    assert pruned(budget="probed").plan == pruned(method="id-probed").plan
    assert pruned(target=Tolerance(0.3)).report.search is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "much"}, "`effort` must be one of fast, normal, thorough, or None; got 'much'"),
        ({"budget": "fair"}, "`budget` must be one of searched, .*; got 'fair'"),
        ({"method": "flap", "budget": "even"}, "'flap' spreads its budget itself"),
        ({"method": "fisher", "budget": "searched"}, "'fisher' spreads.*with 'flap', 'kprune'"),
        ({"method": "kprune", "budget": "searched", "head_dims": True}, "head_dims.*'kprune'"),
        ({"method": "kprune", "budget": "searched", "uniform": True}, "no uniform mode"),
        ({"method": "attention-entropy", "budget": "probed"}, "prices no sizes"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused_before_any_work(options, message, monkeypatch):
    monkeypatch.setattr(loaded_model, "collect_moments", None)
    with pytest.raises(SettingsError, match=message):
        pruned(**options)
