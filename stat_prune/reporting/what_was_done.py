"""A report in a few words: as Markdown for a model card, and as one line."""

from __future__ import annotations

from stat_prune.reporting.lineage import steps_after
from stat_prune.reporting.report import PruningReport


def what_was_done(report: PruningReport, *, beside: bool = True) -> str:
    """Method, target, sizes and data of a run; no names of files.

    Parameters
    ----------
    report : PruningReport
    beside : bool
        The report lies beside what is written.

    Returns
    -------
    str
        A list in Markdown.
    """
    s, before, after = report.settings, report.before, report.after
    fitted = "what is left was fitted to the dense model's outputs, without labels"
    lines = [
        f"Heads and neurons were removed by `{s['method']}` to `{s['target']}`, seed {s['seed']}; "
        f"{fitted if report.finishes else 'nothing was trained'}.",
        f"Parameters: {before.parameters:,} before, {after.parameters:,} "
        f"{'then' if report.trimmings else 'now'}; of the transformer "
        f"blocks {before.block_parameters:,} and {after.block_parameters:,}.",
        f"Multiply-accumulates of the blocks at {report.seq_length:.4g} tokens: "
        f"{before.block_macs:.4g} before, {after.block_macs:.4g} now.",
        f"Calibration: {s['calibration_samples']:,} examples, {s['calibration_tokens']:,} tokens.",
        *(f"{one[0].upper()}{one[1:]}." for one in report.steps()),
    ]
    if beside:
        lines.append(
            "`stat_prune_report.json` has what was kept of each layer, all settings and versions; "
            "`stat-prune inspect` shows it."
        )
    if report.embeddings is not None:
        lines.insert(2, f"Token embeddings: {report.embeddings}.")
    if report.head_dims is not None and report.head_dims.sizes:
        lines.insert(2, f"Dimensions inside heads: {report.head_dims}.")
    if report.lm_head is not None:
        lines.insert(2, f"Head of the language model: {report.lm_head}.")
    earlier = []
    for one in report.earlier:
        earlier.append(
            f"First, `{one['settings']['method']}` to `{one['settings']['target']}`: "
            f"{one['before']['parameters']:,} parameters became {one['after']['parameters']:,}."
        )
        earlier += [f"Then, {step}." for step in steps_after(one)]
    return "\n".join(f"- {line}" for line in [*earlier, *lines])


def in_one_line(report: PruningReport) -> str:
    """What became of a model, and how long it took."""
    before, after = report.before, report.after
    macs = after.block_macs / before.block_macs if before.block_macs else 1
    return (
        f"Kept {macs:.1%} of the blocks' MACs and {after.parameters / before.parameters:.1%} of "
        f"all parameters ({before.parameters:,} -> {after.parameters:,}) in "
        f"{sum(report.seconds.values()):.0f} s."
    )
