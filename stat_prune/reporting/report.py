"""What was removed, what it cost, and everything needed to repeat the run."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from stat_prune.model.factored_table import FactoredTable
from stat_prune.reporting.block_row import BlockRow, error_text
from stat_prune.reporting.finish_report import Finish
from stat_prune.reporting.layer_table import layer_table
from stat_prune.reporting.lineage import parameters_left, steps_after, steps_of, trimmings_of
from stat_prune.reporting.search_report import DimensionsOfHeads, Search
from stat_prune.reporting.trimming_report import TrimmingReport


@dataclass(frozen=True)
class Size:
    """Cost of a model.

    Attributes
    ----------
    block_macs : float
        Multiply-accumulates of the blocks for one sequence of the report's `seq_length`.
    block_parameters : int
        Weights and biases of the blocks' linear layers.
    parameters : int
        ``sum(p.numel() for p in model.parameters())``.
    bytes : int
        Of the parameters in their dtype.
    """

    block_macs: float
    block_parameters: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Speed:
    """Time of the pruned model beside the dense one's, in turns on one batch.

    Attributes
    ----------
    asked : float
        The target's.
    speed_up : float
        Median over rounds of the dense model's time by the pruned one's.
    low, high : float
        Quartiles of it.
    dense_seconds, pruned_seconds : float
        Medians for one forward pass.
    rounds : int
    clock : {"wall", "thread"}
        "thread": time that the one computing thread took, which on an idle machine is wall-clock
        time.
    batch_size, seq_length : int
    threads : int
        Of torch on the CPU.
    device : str
        Name of the CPU or GPU.
    """

    asked: float
    speed_up: float
    low: float
    high: float
    dense_seconds: float
    pruned_seconds: float
    rounds: int
    clock: str
    batch_size: int
    seq_length: int
    threads: int
    device: str

    def __str__(self) -> str:
        clock = "of one thread" if self.clock == "thread" else "by the wall clock"
        return (
            f"{self.asked:.4g} asked, {self.speed_up:.4g} measured (half of {self.rounds} rounds "
            f"between {self.low:.4g} and {self.high:.4g}): {1e3 * self.dense_seconds:.4g} -> "
            f"{1e3 * self.pruned_seconds:.4g} ms {clock} for {self.batch_size} x "
            f"{self.seq_length} tokens; threads: {self.threads}, device: {self.device}"
        )


@dataclass(frozen=True)
class PruningReport:
    """Result of a pruning run in figures; ``print(report)`` shows a table.

    Attributes
    ----------
    blocks : list of BlockRow
    before, after : Size
    seq_length : float
        Tokens a sequence at which MACs are counted.
    predicted_distance : float or None
        Sum over blocks of sensitivity times squared output error: the predicted distance of the
        model's output from the dense one's. None where an output error is not known.
    seconds : dict of str to float
        Wall-clock time by stage.
    peak_memory : int
        Bytes: peak resident set of the process, or of the GPU's allocator.
    settings : dict
        Model, method, target, seed and every other argument, data fingerprint and counts;
        ``chosen`` has what went for arguments that were not given.
    versions : dict of str to str
    second_pass : dict or None
        Whether its correction was ``taken``, the ``distances`` on held-out calibration sequences
        that decided it, and the ``ridges`` of the blocks (None: the weight stayed).
    speed : Speed or None
        Measured where the target speaks of time.
    search : Search or None
        How the budget was searched for, where the method does that.
    lengths : dict of str to float, or None
        Tokens a sequence by the name of their mask, where the model has several.
    predicted_peak_memory : int or None
        Bytes: what `peak_memory` was predicted to be, where the model was pruned layer by layer.
    embeddings : FactoredTable or None
        What became of the token embeddings; None where they are as they were.
    lm_head : FactoredTable or None
        What became of a language model's head that has weights of its own.
    finish : Finish or None
        What was fitted to the dense model's outputs at the end, where that was asked for.
    earlier_finishes : list of Finish
        Where that had been done before, the first time first.
    head_dims : DimensionsOfHeads or None
        What became of dimensions inside heads, where they could leave.
    earlier : list of dict
        Where the model had been pruned before: ``settings``, ``before`` and ``after`` of each of
        these runs, the first one first; with ``finishes`` and ``trimmings`` as here, where there
        were any in between.
    trimmings : list of (int, TrimmingReport)
        Where the vocabulary of the result was trimmed: how many finishes there had been before,
        and what it has changed. `after` is of the run itself.
    """

    blocks: list[BlockRow]
    before: Size
    after: Size
    seq_length: float
    predicted_distance: float | None
    seconds: dict[str, float]
    peak_memory: int
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=lambda: versions())
    second_pass: dict[str, Any] | None = None
    speed: Speed | None = None
    search: Search | None = None
    lengths: dict[str, float] | None = None
    predicted_peak_memory: int | None = None
    embeddings: FactoredTable | None = None
    lm_head: FactoredTable | None = None
    finish: Finish | None = None
    earlier_finishes: list[Finish] = field(default_factory=list)
    head_dims: DimensionsOfHeads | None = None
    earlier: list[dict[str, Any]] = field(default_factory=list)
    trimmings: list[tuple[int, TrimmingReport]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PruningReport:
        """The report that `to_dict` came from."""
        table, head = values.get("embeddings"), values.get("lm_head")
        dims = values.get("head_dims")
        return cls(
            **{
                **values,
                "blocks": [BlockRow(**row) for row in values["blocks"]],
                "before": Size(**values["before"]),
                "after": Size(**values["after"]),
                "speed": Speed(**values["speed"]) if values.get("speed") else None,
                "search": Search.from_dict(values["search"]) if values.get("search") else None,
                "embeddings": FactoredTable(**table) if table else None,
                "lm_head": FactoredTable(**head) if head else None,
                "finish": Finish(**values["finish"]) if values.get("finish") else None,
                "earlier_finishes": [Finish(**one) for one in values.get("earlier_finishes", [])],
                "head_dims": DimensionsOfHeads(**dims) if dims else None,
                "trimmings": trimmings_of(values),
            }
        )

    HEADINGS = ("block", "kept", "of", "key/value", "activation error", "output error")

    def cells(self) -> list[tuple[str, ...]]:
        """A row for each block as text, in the order of `HEADINGS`."""
        return [
            (
                row.name,
                str(row.kept),
                str(row.total),
                f"{row.kept_groups}/{row.total_groups}" if row.total_groups < row.total else "",
                error_text(row.activation_error),
                error_text(row.output_error),
            )
            for row in self.blocks
        ]

    def table(self) -> Group:
        """A row for each layer, and the totals, for a terminal."""
        titles = [*self.lineage(), self.title()]
        return Group(*map(Text, titles), layer_table(self.blocks), Text(self.summary()))

    def title(self) -> str:
        """One line: what was pruned, how, and to what."""
        return _title(self.settings)

    def settings_used(self) -> dict[str, Any]:
        """`settings`, with what was chosen in place of what was not given."""
        chosen = self.settings.get("chosen", {})  # reports of the first versions lack it
        return {
            name: chosen.get(name, value)
            for name, value in self.settings.items()
            if name != "chosen"
        }

    def lineage(self) -> list[str]:
        """A line for all that made the model which was pruned, what was done first at first."""
        lines = []
        for one in self.earlier:
            lines.append(
                f"{_title(one['settings'])}, {one['before']['parameters']:,} -> "
                f"{one['after']['parameters']:,} parameters"
            )
            lines += steps_after(one)
        return lines

    def as_earlier(self) -> list[dict[str, Any]]:
        """`earlier` of a run that prunes the result of this one."""
        said = self.to_dict()
        own = {name: said[name] for name in ("settings", "before", "after")}
        if self.finishes:
            own["finishes"] = [dataclasses.asdict(one) for one in self.finishes]
        if self.trimmings:
            own["trimmings"] = said["trimmings"]
        return [*self.earlier, own]

    def steps(self) -> list[str]:
        """A line for each finish and each trimming of the result, in their order."""
        return steps_of(self.finishes, self.trimmings)

    @property
    def parameters_now(self) -> int:
        """Of the result after all of these."""
        return parameters_left(self.trimmings, self.after.parameters)

    def summary(self) -> str:
        """Totals and time, in a few lines."""
        before, after = self.before, self.after
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return "\n".join(
            (
                f"MACs of blocks    {before.block_macs:.4g} -> {after.block_macs:.4g} "
                f"({_share(after.block_macs, before.block_macs)}) at {self._lengths()} tokens; "
                "embeddings, pooler and task head not counted",
                f"block parameters  {before.block_parameters:,} -> {after.block_parameters:,} "
                f"({_share(after.block_parameters, before.block_parameters)})",
                f"all parameters    {before.parameters:,} -> {after.parameters:,} "
                f"({_share(after.parameters, before.parameters)}), "
                f"{before.bytes / 2**20:.1f} -> {after.bytes / 2**20:.1f} MiB",
                *([f"of the first      {self._of_first()}"] if self.earlier else []),
                *([f"embeddings        {self.embeddings}"] if self.embeddings else []),
                *([f"head of the model {self.lm_head}"] if self.lm_head else []),
                f"calibration       {self.calibration_text()}",
                *([f"budget            {self.search}"] if self.search else []),
                *([f"inside heads      {self.head_dims}"] if self.head_dims else []),
                *([f"second pass       {self.second_pass_text()}"] if self.second_pass else []),
                *(f"{name:<18}{text}" for name, text in self._named_steps()),
                *([f"speed-up          {self.speed}"] if self.speed else []),
                f"seconds           {stages}; peak memory {self._memory()}",
            )
        )

    @property
    def finishes(self) -> list[Finish]:
        """All that was fitted, the last at the end."""
        return [*self.earlier_finishes, *([self.finish] if self.finish else [])]

    def _of_first(self) -> str:
        """What is left of the model that was pruned first."""
        first = self.earlier[0]["before"]["parameters"]
        now = self.parameters_now
        return f"{first:,} -> {now:,} parameters ({_share(now, first)})"

    def _named_steps(self) -> list[tuple[str, str]]:
        """What was done to the result, as the first word and the rest of each step."""
        return [(name, text) for name, _, text in (one.partition(": ") for one in self.steps())]

    def _memory(self) -> str:
        predicted = self.predicted_peak_memory
        beside = "" if predicted is None else f" ({predicted / 2**20:.0f} predicted)"
        return f"{self.peak_memory / 2**20:.0f} MiB{beside}"

    def _lengths(self) -> str:
        """Tokens a sequence, as people say them."""
        if self.lengths is None:
            return f"{self.seq_length:.4g}"
        named = (f"{length:.4g} ({mask})" for mask, length in self.lengths.items())
        return " and ".join(named)

    @property
    def collection_rate(self) -> float | None:
        """Calibration tokens a second, by all processes together; None where it was not timed.

        Of the stage that runs the dense model and sums up the statistics, and nothing else.
        """
        seconds = self.seconds.get("collect", 0.0)
        return self.settings["calibration_tokens"] / seconds if seconds else None

    def calibration_text(self) -> str:
        """How much was read, and how fast."""
        s, rate = self.settings, self.collection_rate
        read = f"{s['calibration_samples']:,} sequences, {s['calibration_tokens']:,} tokens"
        # Reports of the first versions lack some entries.
        masked = s.get("calibration_masked_tokens", 0)
        read += f", {masked:,} of them masked" if masked else ""
        processes = s.get("processes", 1)
        by = f" by {processes} processes" if processes > 1 else ""
        return read if rate is None else f"{read}, {rate:,.0f} tokens a second{by}"

    def second_pass_text(self) -> str:
        """Which correction was taken, and what decided it."""
        assert self.second_pass is not None
        distances = self.second_pass["distances"]
        tried = ", ".join(f"{name} {value:.3g}" for name, value in distances.items())
        taken = "second pass" if self.second_pass["taken"] else "first pass"
        return f"{taken} taken; distance of the output on held-out sequences: {tried}"

    def __str__(self) -> str:
        # Plain text wherever it is printed: notebooks and terminals would get markup.
        console = Console(width=80, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _title(settings: dict[str, Any]) -> str:
    return f"{settings['model']}: {settings['method']} to {settings['target']}"


def _share(after: float, before: float) -> str:
    return f"{after / before:.1%} kept" if before else "nothing to count"


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result may depend on."""
    names = ("stat-prune", "torch", "transformers", "datasets", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:  # run from a source folder that is not installed
        return "not installed"
