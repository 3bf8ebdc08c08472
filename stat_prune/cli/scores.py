"""Scores on development sets, of one model or of several in turn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import typer

from stat_prune.data.glue_tasks import GLUE_TASKS
from stat_prune.errors import DataError, LoadError

STS_COSINE, PERPLEXITY, SQUAD, DIVERGENCE = "sts-cosine", "perplexity", "squad", "divergence"
TASKS = (*GLUE_TASKS, SQUAD, STS_COSINE, PERPLEXITY, DIVERGENCE)

ABOUT_TASKS = (
    f"A GLUE task ({', '.join(GLUE_TASKS)}) for a classifier; {SQUAD} for a question answering "
    f"model; {STS_COSINE} (STS-B through its own embeddings) for a sentence encoder; "
    f"{PERPLEXITY} for a causal language model; {DIVERGENCE} of the output from the dense model's, "
    "for any model and without labels."
)
ABOUT_DATA = (
    "For GLUE and sts-cosine the folder that holds TASK/dev.tsv, for squad a file as SQuAD "
    "publishes it; default the Hub's copy. For perplexity and divergence the texts, in any "
    "form that `prune --dataset` takes."
)


@dataclass(frozen=True)
class Scoring:
    """A task, and how models are scored on it; as the options of ``stat-prune evaluate``."""

    task: str
    data: str | None = None
    limit: int | None = None
    context_length: int | None = None
    batch_size: int = 32
    device: str | None = None
    dense: str | None = None

    def __post_init__(self) -> None:
        if self.task in (PERPLEXITY, DIVERGENCE) and self.data is None:
            raise typer.BadParameter(
                f"{self.task} needs texts: pass a file or the name of a dataset"
            )
        if (self.task == DIVERGENCE) != (self.dense is not None):
            raise typer.BadParameter(
                "divergence, and no other task, compares with the dense model: --dense MODEL"
            )

    def of(
        self, name: str, *, auto_class: str | None = None, tokenizer: str | None = None
    ) -> dict[str, Any]:
        """Scores, in float32, of the model in a folder or on the Hub.

        Raises
        ------
        StatPruneError
            If it cannot be loaded or scored.
        """
        import torch

        from stat_prune.checkpoints.pretrained import load_pretrained, load_tokenizer
        from stat_prune.settings.arguments import usable_device

        where = usable_device(self.device) or "cpu"
        by_itself = self.task == STS_COSINE and (auto_class, tokenizer) == (None, None)
        if by_itself and (whole := _whole_encoder(name)) is not None:
            return self._scores(whole.to(where, torch.float32), tokenizer=None)
        names = [name] if self.dense is None else [name, self.dense]
        models = [load_pretrained(one, auto_class) for one in names]
        for model in models:
            torch.nn.Module.to(model, where, torch.float32)
        found = load_tokenizer(tokenizer or name)
        if found is None:
            raise LoadError(f"{tokenizer or name!r} has no tokenizer, which evaluation needs.")
        return self._scores(*models, tokenizer=found)

    def _scores(self, model: Any, dense: Any = None, *, tokenizer: Any) -> dict[str, Any]:
        from stat_prune.evaluation import (
            divergence,
            evaluate_glue,
            evaluate_squad,
            perplexity,
            read_glue,
            sts_spearman,
        )

        common: dict[str, Any] = {"batch_size": self.batch_size}
        if self.task == PERPLEXITY:
            texts = _texts(self.data or "", self.limit)
            return perplexity(model, tokenizer, texts, context_length=self.context_length, **common)
        if self.task == DIVERGENCE:
            common["num_samples"] = self.limit or 512
            return divergence(dense, model, tokenizer, self.data, **common)
        if self.task == STS_COSINE:
            pairs = read_glue("stsb", self.data).spread(self.limit)
            found = sts_spearman(model, tokenizer, pairs.texts, pairs.labels, **common)
            return {"spearman": found, "num_examples": len(pairs.texts)}
        common["limit"] = self.limit
        if self.task == SQUAD:
            return evaluate_squad(model, tokenizer, self.data, **common)
        return evaluate_glue(model, tokenizer, self.task, self.data, **common)


def _whole_encoder(name: str) -> Any | None:
    """A sentence encoder with what is behind its transformer; None of other models."""
    from stat_prune.checkpoints.encoder_folders import find_encoder, open_encoder
    from stat_prune.errors import ModelWarning

    encoder = find_encoder(name)
    if encoder is None or encoder.kind != "SentenceTransformer":
        return None
    try:
        return open_encoder(name, encoder)
    except LoadError as error:
        warnings.warn(
            f"{name} is scored by the mean of its token states, whatever its folder says: "
            f"{str(error).rstrip('.')}.",
            ModelWarning,
            stacklevel=2,
        )
        return None


def shown(*scores: dict[str, Any], task: str | None = None) -> list[str]:
    """A line for each score, with its value for every model in turn; one value where all agree."""
    lines = []
    for name in scores[0]:
        values = [f"{x:.4f}" if isinstance(x := one[name], float) else str(x) for one in scores]
        label = name if task in (None, name) else f"{task} {name}"
        lines.append(f"{label}: {' -> '.join(values if len(set(values)) > 1 else values[:1])}")
    return lines


def _texts(data: str, limit: int | None) -> list[str]:
    from stat_prune.examples.iterating import iterate_examples

    texts = []
    for example in iterate_examples(data, seed=0):
        if not isinstance(example, str):
            raise DataError(
                f"Perplexity is that of single texts, but {data} holds {str(example)[:80]!r}. Put "
                "each text as one string into a column 'text'."
            )
        texts.append(example)
    if not texts:
        raise DataError(f"{data} holds no texts to measure perplexity on.")
    return texts[:limit]
