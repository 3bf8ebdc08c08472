"""The demo's course: prune to three sizes and to a third of the file, compare, save."""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.cli.demo.demo_data import HUB_NAME, Passages, find_sentence_encoder, read_passages
from stat_prune.cli.demo.demo_report import (
    BASELINE,
    INT8,
    NEIGHBORS,
    SAVED_FRACTION,
    THIRD,
    TIMED_PASSAGES,
    TIMED_TOKENS,
    DemoReport,
    DemoRow,
    draw,
)
from stat_prune.cli.demo.rounding import in_int8
from stat_prune.errors import CalibrationWarning, StatPruneError
from stat_prune.evaluation import cosine_to_reference, embed, neighbor_recall
from stat_prune.machine.progress import progress_bar
from stat_prune.measuring.latency import median_latencies
from stat_prune.pruning import prune_family
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.targets import MACs, Parameters

FRACTIONS = (0.8, 0.6, 0.4)

#: A third of all-MiniLM-L6-v2's file, with the quarter of the embeddings that `Bytes(1 / 3)` took
#: on STS-B, in a search that the demo has no time for. Blocks alone could not give so much.
OF_FILE = Parameters(0.4, embeddings=0.25)


def run_demo(
    output_dir: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    passages: Passages | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DemoReport:
    """Prune a sentence encoder to 0.8, 0.6 and 0.4 of its MACs, beside magnitude pruning.

    And to a third of its file, token embeddings too; that and the dense model are in int8 as well.

    Parameters
    ----------
    output_dir : path
        Made if need be; what an earlier demo left there is replaced.
    model, tokenizer : optional
        Default: all-MiniLM-L6-v2, see `stat_prune.cli.demo.demo_data.find_sentence_encoder`.
    passages : Passages, optional
        Default: Python's language reference, `stat_prune.cli.demo.demo_data.read_passages`.
    seed : int
    progress : bool

    Raises
    ------
    LoadError
        If the model is not installed.
    StatPruneError
        If matplotlib is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise StatPruneError(
            "The demo draws with matplotlib. Install it with: pip install 'stat-prune[demo]'"
        )
    start = time.perf_counter()
    if model is None or tokenizer is None:
        folder = find_sentence_encoder()
        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        model.config._name_or_path = HUB_NAME  # what it is, not where it lay
    passages = passages or read_passages(seed)
    *ours, third = prune_family(
        model,
        passages.calibration,
        targets=[*(MACs(fraction) for fraction in FRACTIONS), OF_FILE],
        tokenizer=tokenizer,
        seed=seed,
        progress=progress,
    )
    saved = ours[FRACTIONS.index(SAVED_FRACTION)]
    baseline = _magnitude_family(model, tokenizer, passages, saved.report.seq_length)
    families = {"stat": ours, THIRD: [third], BASELINE: baseline}
    rows = _compare(model, tokenizer, passages.held_out, families, progress=progress)
    report = DemoReport(
        rows=rows,
        facts={
            "model": model.config._name_or_path or type(model).__name__,
            "model_class": type(model).__name__,
            "calibration_passages": len(passages.calibration),
            "held_out_passages": len(passages.held_out),
            "mean_tokens": round(saved.report.seq_length, 1),
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 1),
            "pruning_seconds": {
                stage: round(seconds, 1) for stage, seconds in saved.report.seconds.items()
            },
            "versions": saved.report.versions,
        },
        output_dir=Path(output_dir),
    )
    saved.save(report.output_dir / "model", overwrite=True)
    draw(rows, report.output_dir / "tradeoff.png")
    (report.output_dir / "results.json").write_text(json.dumps(report.to_dict(), indent=2))
    (report.output_dir / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    return report


def _magnitude_family(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Passages,
    seq_length: float,
) -> list[PruningResult]:
    """The same budgets without the method. Magnitudes are in the weights: one passage will do."""
    with warnings.catch_warnings(category=CalibrationWarning, action="ignore"):
        return prune_family(
            model,
            passages.calibration,
            targets=[MACs(fraction, seq_length=seq_length) for fraction in FRACTIONS],
            tokenizer=tokenizer,
            method=BASELINE,
            num_calibration_samples=1,
            progress=False,
        )


def _compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    families: dict[str, list[PruningResult]],
    *,
    progress: bool,
) -> list[DemoRow]:
    before = families["stat"][0].report.before
    models = [("dense", model, before)] + [
        (method, result.model, result.report.after)
        for method, family in families.items()
        for result in family
    ]
    batch = tokenizer(
        list(passages[:TIMED_PASSAGES]),
        padding=True,
        truncation=True,
        max_length=TIMED_TOKENS,
        return_tensors="pt",
    )
    seconds = median_latencies([one for _, one, _ in models], batch)
    reference = embed(model, tokenizer, passages)

    def agreement(one: PreTrainedModel) -> dict[str, float]:
        embeddings = reference if one is model else embed(one, tokenizer, passages)
        return {
            "cosine": cosine_to_reference(embeddings, reference),
            "recall": neighbor_recall(embeddings, reference, NEIGHBORS),
        }

    rows = []
    measured = progress_bar(models, shown=progress, desc="measure", unit="model")
    for (method, one, size), own in zip(measured, seconds, strict=True):
        row = DemoRow(
            method=method,
            kept_macs=size.block_macs / before.block_macs,
            mebibytes=size.bytes / 2**20,
            macs=size.block_macs,
            speedup=seconds[0] / own,
            **agreement(one),
        )
        rows.append(row)
        if method in ("dense", THIRD):
            rounded, num_bytes = in_int8(one)
            changed = {"mebibytes": num_bytes / 2**20, **agreement(rounded)}
            rows.append(replace(row, method=method + INT8, speedup=None, **changed))
    return rows
