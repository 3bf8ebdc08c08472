"""What is left of models whose token embeddings are factored or trimmed.

    STAT_PRUNE_DATA=... python benchmarks/embeddings.py --task encoder --objective pooled
    STAT_PRUNE_DATA=... python benchmarks/embeddings.py --task stories
    STAT_PRUNE_DATA=... python benchmarks/embeddings.py --task stories --lm-head 0.5
    STAT_PRUNE_DATA=... python benchmarks/embeddings.py --task reactions-albert --projected 0.5
    STAT_PRUNE_DATA=... python benchmarks/embeddings.py --trim 5000

Each task's score, with the embeddings at several fractions by themselves, and with the whole file
at several fractions: shared out between blocks and embeddings, and taken from the blocks alone.
Texts of another kind (paragraphs of SQuAD, which the encoder is not calibrated on) show what
becomes of rare tokens: the mean cosine of their embeddings with the dense model's; the share of
their questions for which the nearest paragraph is the one that the dense model finds nearest; and
the share for which it is their own. With --lm-head, a copy of the embeddings becomes a head of its
own, and that alone is factored: in the metric of the states that it reads, and without one. With
--projected, the embeddings of the model without its head are factored in the metric of the learned
projection behind them, and without one; what is measured is the relative distance of the hidden
states on texts that were not calibrated on. With --int8, each model's
weights are rounded to 8 bits, too, with a scale a row, and computed with in float32.

With --trim, each model at hand is trimmed to the tokens of so many texts: how many of 300 others
are split otherwise, and whether what is computed of those in tokens that stay is the same to the
bit.
"""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from tqdm.auto import tqdm

import stat_prune
from harness import options
from harness.sources import data_folder
from stat_prune.cli.demo.rounding import in_int8
from stat_prune.data.model_calibration import calibration_set_for
from stat_prune.evaluation.similarity import embed
from stat_prune.families import embedding_projection, find_blocks
from stat_prune.measuring.objectives import objective_named
from stat_prune.measuring.sensitivity import distance
from stat_prune.measuring.token_counts import token_counts
from stat_prune.settings.targets import Bytes, Parameters, Target
from stat_prune.surgery.embeddings import (
    TableFactors,
    decompose_head,
    decompose_table,
    factor,
    factor_own_head,
)
from stat_prune.surgery.token_tables import whole_rows
from tasks import TASKS
from trimmed import measure_trimmed

Record = dict[str, Any]

#: Paragraphs of another kind.
NUM_PARAGRAPHS = 200


def other_texts() -> tuple[list[str], list[str]]:
    """Paragraphs of SQuAD's training split, and a question on each."""
    path = data_folder() / "data" / "squad" / "train_subset_44articles.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [one for article in articles for one in article["paragraphs"]]
    drawn = random.Random(0).sample(paragraphs, NUM_PARAGRAPHS)
    return [one["context"] for one in drawn], [one["qas"][0]["question"] for one in drawn]


class Others:
    """Texts of another kind, and what the dense model makes of them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._tokenizer, (self._paragraphs, self._questions) = tokenizer, other_texts()
        self._dense, self._found = self._embedded(model)

    def agreement(self, model: Any) -> dict[str, float]:
        """Of a model with the dense one."""
        embedded, found = self._embedded(model)
        own = found == found.new_tensor(range(len(found)))
        return {
            "other texts": float(cosine_similarity(embedded, self._dense).mean()),
            "same paragraph": float((found == self._found).float().mean()),
            "right paragraph": float(own.float().mean()),
        }

    def _embedded(self, model: Any) -> tuple[Tensor, Tensor]:
        """Of each paragraph, and the number of the nearest to each question."""
        paragraphs, questions = (
            embed(model, self._tokenizer, texts, max_seq_length=128)
            for texts in (self._paragraphs, self._questions)
        )
        likeness = normalize(questions, dim=-1) @ normalize(paragraphs, dim=-1).T
        return paragraphs, likeness.argmax(-1)


def targets_for(
    model: Any, embeddings: list[float], files: list[float], parameters: list[float]
) -> dict[str, Target]:
    """By name: embeddings alone, what is shared out, and bytes of the blocks alone."""
    found: dict[str, Target] = {
        f"embeddings at {kept:g}": Parameters({"embeddings": kept}) for kept in embeddings
    }
    for kept in parameters:
        found[f"parameters at {kept:g}"] = Parameters(kept, embeddings=True)
    whole = sum(one.numel() for one in model.parameters())
    in_blocks = sum(b.parameters(b.num_units, b.num_groups) for b in find_blocks(model))
    for kept in files:
        found[f"file at {kept:g}"] = Bytes(kept)
        of_blocks = 1 - (1 - kept) * whole / in_blocks
        if of_blocks > 0:
            found[f"file at {kept:g}, of the blocks alone"] = Parameters(of_blocks)
    return found


def measure(
    name: str,
    embeddings: list[float],
    files: list[float],
    parameters: list[float],
    *,
    int8: bool = False,
    **settings: Any,
) -> list[Record]:
    """Score, size and agreement on other texts of a task's model, dense and at each target."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    model.eval()
    others = Others(model, tokenizer) if name == "encoder" else None
    records: list[Record] = []

    def note(what: str, pruned: Any, **more: Any) -> None:
        records.append(
            {
                "task": name,
                "what": what,
                **task.score(pruned, tokenizer),
                **({} if others is None else others.agreement(pruned)),
                "MiB": sum(p.numel() * p.element_size() for p in pruned.parameters()) / 2**20,
                **more,
            }
        )
        print(json.dumps(records[-1]), flush=True)
        if int8 and "MiB" not in more:
            rounded, num_bytes = in_int8(pruned)
            note(f"{what}, int8", rounded, **more, MiB=num_bytes / 2**20)

    note("dense", model)
    for what, target in tqdm(
        targets_for(model, embeddings, files, parameters).items(), unit="target"
    ):
        result = stat_prune.prune(
            model,
            task.calibration(),
            tokenizer=tokenizer,
            target=target,
            progress=False,
            **settings,
        )
        table = result.report.embeddings
        note(what, result.model, rank=None if table is None else table.rank)
    return records


def with_own_head(model: Any) -> Any:
    """A copy of a language model whose head has weights of its own: those of the embeddings."""
    copied = copy.deepcopy(model)
    head = copied.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    copied.config.tie_word_embeddings = False
    copied.all_tied_weights_keys = {}
    return copied


def measure_heads(name: str, fractions: list[float], **settings: Any) -> list[Record]:
    """Score of a language model whose head alone is factored, with and without a metric."""
    task = TASKS[name]()
    model, tokenizer = task.load()
    untied, records = with_own_head(model.eval()), []
    calibration = calibration_set_for(
        untied,
        task.calibration(),
        tokenizer,
        num_samples=settings["num_calibration_samples"],
        seed=settings["seed"],
    )
    size = len(untied.get_output_embeddings().weight), model.config.hidden_size
    counts = token_counts(calibration.batches, size[0])
    plain = decompose_head(untied, counts, torch.eye(size[1], dtype=torch.float64))
    for kept in fractions:
        target = Parameters({"lm_head": kept})
        result = stat_prune.prune(
            untied,
            task.calibration(),
            tokenizer=tokenizer,
            target=target,
            progress=False,
            **settings,
        )
        without = with_own_head(model)
        factor_own_head(without, plain, kept)
        for what, one in (("metric of the states", result.model), ("no metric", without)):
            scores = task.score(one, tokenizer)
            records.append({"task": name, "what": f"head at {kept:g}, {what}", **scores})
            print(json.dumps(records[-1]), flush=True)
    return records


def measure_projected(name: str, fractions: list[float], **settings: Any) -> list[Record]:
    """Hidden states of a model without its head, of embeddings with and without a metric."""
    task = TASKS[name]()
    loaded, tokenizer = task.load()
    model, records = copy.deepcopy(loaded.eval().base_model), []
    if task.unseen is None or embedding_projection(model) is None:
        raise typer.BadParameter(f"The model of {name} has no learned projection.")
    read, unseen = (
        calibration_set_for(
            model,
            texts,
            tokenizer,
            num_samples=settings["num_calibration_samples"],
            seed=settings["seed"],
        ).batches
        for texts in (task.calibration(), task.unseen())
    )
    counts = token_counts(read, len(model.get_input_embeddings().weight))
    metrics = {
        "metric of the projection": decompose_table(model, counts),
        "no metric": TableFactors(whole_rows(model.get_input_embeddings()), counts),
    }
    for kept in fractions:
        for metric, factors in metrics.items():
            pruned = copy.deepcopy(model)
            table = factor(pruned, factors, kept)
            records.append(
                {
                    "task": name,
                    "what": f"embeddings at {kept:g}, {metric}",
                    "rank": None if table is None else table.rank,
                    "exact": None if table is None else table.num_exact,
                    "distance": distance(model, pruned, unseen, objective_named(None)),
                }
            )
            print(json.dumps(records[-1]), flush=True)
    return records


def markdown(records: list[Record]) -> str:
    """The records as a table."""
    columns = list(dict.fromkeys(name for row in records for name in row))
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    for row in records:
        cells = (row.get(name, "") for name in columns)
        shown = (
            f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)
            for cell in cells
        )
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main(
    task: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.")] = None,
    embeddings: Annotated[list[float] | None, typer.Option(help="Fractions of them.")] = None,
    file: Annotated[list[float] | None, typer.Option(help="Fractions of all bytes.")] = None,
    parameters: Annotated[
        list[float] | None,
        typer.Option(help="Fractions of blocks, embeddings and head together, and nothing else."),
    ] = None,
    only_files: Annotated[bool, typer.Option(help="No embeddings by themselves.")] = False,
    lm_head: Annotated[
        list[float] | None, typer.Option(help="Fractions of a head of its own, and nothing else.")
    ] = None,
    projected: Annotated[
        list[float] | None,
        typer.Option(help="Fractions of embeddings with a projection behind, without the head."),
    ] = None,
    trim: Annotated[
        int | None,
        typer.Option(min=1, help="Texts whose tokens are kept of each model at hand."),
    ] = None,
    int8: Annotated[
        bool, typer.Option(help="Each model with weights rounded to 8 bits, too.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Calibration examples.")] = 512,
    effort: options.Effort = "normal",
    passes: Annotated[
        int | None, typer.Option(help="1: blocks do not make up for what factors do.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="For instance pooled.")] = None,
    seed: int = 0,
    output: Annotated[Path, typer.Option(help="Folder for the table.")] = Path(
        "results/embeddings"
    ),
) -> None:
    """Measure what is left of the models of some tasks."""
    fractions = [] if only_files or parameters else embeddings or [0.5, 0.33, 0.2]
    files = [] if parameters else file or [0.7, 0.5]
    settings: Record = {"num_calibration_samples": samples, "effort": effort, "seed": seed}
    if not task and trim is None:
        raise typer.BadParameter("Nothing to measure. Pass --task, or --trim.")
    records: list[Record] = [] if trim is None else measure_trimmed(trim)
    for name in task or []:
        if projected:
            records += measure_projected(name, projected, **settings)
        elif lm_head:
            records += measure_heads(name, lm_head, **settings)
        else:
            records += measure(
                name,
                fractions,
                files,
                parameters or [],
                int8=int8,
                **settings,
                passes=passes,
                objective=objective,
            )
    output.mkdir(parents=True, exist_ok=True)
    (output / "embeddings.json").write_text(json.dumps(records, indent=2) + "\n")
    (output / "embeddings.md").write_text(markdown(records))
    print(markdown(records))


if __name__ == "__main__":
    typer.run(main)
