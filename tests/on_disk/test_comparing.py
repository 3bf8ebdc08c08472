"""Ways to spread the budget are compared layer by layer as they are on the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert
from transformers import BertForMaskedLM, BertForSequenceClassification

import stat_prune
from stat_prune.checkpoints.replacing import REPORT_FILE
from stat_prune.choosing.budget.exploring import in_vain
from stat_prune.pipeline.on_disk import variants
from stat_prune.pipeline.on_disk.comparing import Compared
from stat_prune.reporting.report import PruningReport

OPTIONS: dict[str, Any] = {"effort": "fast", "batch_size": 7, "progress": False}


def examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (40,), generator=generator).tolist()
    return [{"input_ids": torch.randint(4, 60, (n,), generator=generator)} for n in lengths]


def both(model: Any, folder: Path, **options: Any) -> tuple[stat_prune.PruningResult, Any]:
    """Pruned in memory and layer by layer."""
    model.save_pretrained(folder / "dense")
    whole = stat_prune.prune(model, examples(), **OPTIONS | options)
    pruned = stat_prune.prune_checkpoint(
        folder / "dense", examples(), output_dir=folder / "out", **OPTIONS | options
    )
    return whole, pruned


@pytest.mark.parametrize("head", [BertForMaskedLM, BertForSequenceClassification])
@pytest.mark.parametrize("kept", [0.6, 0.4])
def test_the_start_is_taken_that_is_taken_in_memory(head, kept, tmp_path):
    model = tiny_bert(head, num_hidden_layers=6)
    whole, pruned = both(model, tmp_path, target=stat_prune.MACs(kept))

    assert pruned.plan == whole.plan
    wanted, found = whole.report.search, pruned.report.search
    assert (found.taken, found.effort, found.sequences) == (wanted.taken, "fast", wanted.sequences)
    # Those that are given up halfway in memory are given up here.
    assert list(found.starts) == list(wanted.starts)
    # In memory candidates are folded in float32.
    assert found.starts == pytest.approx(wanted.starts, rel=2e-5)
    saved = PruningReport.from_dict(pruned.report.to_dict())
    assert saved.search == found
    assert '"search"' in (tmp_path / "out" / REPORT_FILE).read_text()


def test_of_a_deep_model_another_start_than_the_probes_may_be_the_nearest(tmp_path):
    model = tiny_bert(BertForMaskedLM, num_hidden_layers=6)
    model.save_pretrained(tmp_path / "dense")
    options = OPTIONS | {"target": stat_prune.MACs(0.6)}

    def pruned(budget: str) -> Any:
        return stat_prune.prune_checkpoint(
            tmp_path / "dense", examples(), output_dir=tmp_path / budget, budget=budget, **options
        )

    searched, probed = pruned("searched"), pruned("probed")
    starts = searched.report.search.starts
    assert starts[searched.report.search.taken] == min(starts.values()) < starts["probes^1"]
    assert searched.plan != probed.plan


@pytest.mark.parametrize(
    "options",
    [
        {"target": stat_prune.Tolerance(0.3)},
        {"target": stat_prune.MACs(0.6), "budget": "probed"},
        {"target": stat_prune.MACs(0.6), "method": "id-even"},
    ],
    ids=str,
)
def test_where_nothing_is_searched_no_model_is_compared(options, tmp_path, monkeypatch):
    passed: list[int] = []
    monkeypatch.setattr(variants, "run_layer", lambda *args: passed.append(args[1]))
    _, pruned = both(tiny_bert(BertForMaskedLM), tmp_path, **options)
    assert passed == []
    assert pruned.report.search is None


def test_broken_off_within_a_layer_of_the_comparison_it_goes_on_to_the_same_bits(
    tmp_path, monkeypatch
):
    tiny_bert(BertForMaskedLM, num_hidden_layers=3).save_pretrained(tmp_path / "dense")
    options = OPTIONS | {"target": stat_prune.MACs(0.6)}

    def prune(name: str, **more: Any) -> dict[str, bytes]:
        stat_prune.prune_checkpoint(
            tmp_path / "dense", examples(), output_dir=tmp_path / name, **options, **more
        )
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}

    unbroken = prune("unbroken")
    run_layer = variants.run_layer
    middle = 0

    def stopping(model: Any, layer: int, *args: Any) -> Any:
        nonlocal middle
        # In the middle of the second layer: some of its streams are through.
        middle += layer == 1
        if middle == 10:
            raise KeyboardInterrupt
        return run_layer(model, layer, *args)

    monkeypatch.setattr(variants, "run_layer", stopping)
    with pytest.raises(KeyboardInterrupt):
        prune("out")
    working = tmp_path / "out.working"
    assert (working / "compared-0000" / "states").is_dir()
    assert not (working / "compared-0001").exists()
    # What probes left behind the last layer is needed no more.
    assert not (working / "layer-0002" / "states").exists()
    monkeypatch.undo()

    assert prune("out", resume=True) == unbroken
    assert not working.exists()


def test_a_choice_is_given_up_after_the_part_that_speaks_against_it():
    near = torch.tensor([1.0, 1.1, 0.9, 1.0, 1.1, 0.9], dtype=torch.float64)
    begins_badly = torch.tensor([3.0, 3.1, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    ends_badly = torch.tensor([1.0, 1.1, 0.9, 1.0, 9.0, 9.0], dtype=torch.float64)
    compared = Compared({(0,): near, (1,): begins_badly, (2,): ends_badly}, 3)
    current = compared.measure([0])

    assert compared.measure_beside([1], current, in_vain) is None
    # The whole is known after the last part, and is the distance.
    found = compared.measure_beside([2], current, in_vain)
    assert found is not None and found.distance == pytest.approx(float(ends_badly.mean()))
    asked: list[int] = []
    compared.measure_beside([2], current, lambda found, _: asked.append(len(found)) or False)
    assert asked == [2, 4]
