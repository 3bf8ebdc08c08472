"""The demo's course: prune to three sizes, compare with the original, save."""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.cli.demo.demo_data import HUB_NAME, Passages, find_sentence_encoder, read_passages
from stat_prune.cli.demo.demo_report import (
    BASELINE,
    FACTORED,
    NEIGHBORS,
    SAVED_FRACTION,
    TIMED_PASSAGES,
    TIMED_TOKENS,
    DemoReport,
    DemoRow,
    draw,
)
from stat_prune.errors import CalibrationWarning, StatPruneError
from stat_prune.evaluation import cosine_to_reference, embed, neighbor_recall
from stat_prune.machine.progress import progress_bar
from stat_prune.measuring.latency import median_latencies
from stat_prune.pruning import prune, prune_family
from stat_prune.reporting.report import Size
from stat_prune.reporting.result import PruningResult
from stat_prune.settings.targets import MACs, Parameters

FRACTIONS = (0.8, 0.6, 0.4)

#: Of the saved model's embeddings, which are more than half of a small file.
OF_EMBEDDINGS = 0.33


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

    Of the middle one, the embeddings are factored, too.

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
    ours = prune_family(
        model,
        passages.calibration,
        targets=[MACs(fraction) for fraction in FRACTIONS],
        tokenizer=tokenizer,
        seed=seed,
        progress=progress,
    )
    saved = ours[FRACTIONS.index(SAVED_FRACTION)]
    baseline = _magnitude_family(model, tokenizer, passages, saved.report.seq_length)
    smaller = prune(
        saved.model,
        passages.calibration,
        target=Parameters({"embeddings": OF_EMBEDDINGS}),
        tokenizer=tokenizer,
        seed=seed,
        progress=False,
    )
    families = {"stat": ours, FACTORED: [smaller], BASELINE: baseline}
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
    results = [(method, result) for method, family in families.items() for result in family]
    batch = tokenizer(
        list(passages[:TIMED_PASSAGES]),
        padding=True,
        truncation=True,
        max_length=TIMED_TOKENS,
        return_tensors="pt",
    )
    seconds = median_latencies([model, *(result.model for _, result in results)], batch)
    reference = embed(model, tokenizer, passages)
    before = results[0][1].report.before
    rows = [_row("dense", before, before, 1.0, reference, reference)]
    measured = progress_bar(results, shown=progress, desc="measure", unit="model")
    for (method, result), own in zip(measured, seconds[1:], strict=True):
        embeddings = embed(result.model, tokenizer, passages)
        rows.append(
            _row(method, result.report.after, before, seconds[0] / own, embeddings, reference)
        )
    return rows


def _row(
    method: str, size: Size, dense: Size, speedup: float, embeddings: Tensor, reference: Tensor
) -> DemoRow:
    return DemoRow(
        method=method,
        kept_macs=size.block_macs / dense.block_macs,
        mebibytes=size.bytes / 2**20,
        macs=size.block_macs,
        speedup=speedup,
        cosine=cosine_to_reference(embeddings, reference),
        recall=neighbor_recall(embeddings, reference, NEIGHBORS),
    )
