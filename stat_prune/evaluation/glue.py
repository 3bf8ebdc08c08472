"""GLUE: readers of the tasks, and the scores that the benchmark defines.

References
----------
.. [1] Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
   Understanding", ICLR 2019.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.data.glue_tasks import GLUE_TASKS, GlueTask
from stat_prune.data.sampling import evenly_spaced
from stat_prune.errors import DataError
from stat_prune.evaluation.forward import Text, entry_of, forward_texts
from stat_prune.evaluation.hub import hub_rows
from stat_prune.examples.text_files import long_fields, reading_text

HUB_NAME = "nyu-mll/glue"
HUB_SPLITS = {"train": "train", "dev": "validation"}


# Headers of the original files that differ from the names above.
FILE_COLUMNS = {
    "#1 String": "sentence1",
    "#2 String": "sentence2",
    "Quality": "label",
    "score": "label",
    "gold_label": "label",
    "is_duplicate": "label",
}
COLA_COLUMNS = ("source", "label", "mark", "sentence")  # its files have no header


@dataclass(frozen=True)
class GlueData:
    """Texts and labels of one split.

    Attributes
    ----------
    texts : list of str or of pairs of str
    labels : ndarray of shape (n_texts,), int64, or float64 (STS-B, 0 to 5)
    """

    texts: list[Text]
    labels: np.ndarray

    def spread(self, limit: int | None) -> GlueData:
        """So many examples, evenly spaced; all of them for None."""
        indices = evenly_spaced(len(self.texts), limit)
        return GlueData([self.texts[index] for index in indices], self.labels[indices])


def read_glue(task: str, folder: str | Path | None = None, *, split: str = "dev") -> GlueData:
    """Read one split of a GLUE task.

    Parameters
    ----------
    task : str
        A key of `GLUE_TASKS`.
    folder : path, optional
        Holding ``<task>/<split>.tsv`` with the columns of the original files. Default: the Hub's
        copy, or its cache.
    split : {"train", "dev"}
        For MNLI ``"dev"`` is the matched part.

    Raises
    ------
    DataError
        If the task is unknown, or its data cannot be found or read.
    """
    known = _task(task)
    if split not in HUB_SPLITS:
        raise DataError(f"split must be one of {', '.join(HUB_SPLITS)}, got {split!r}.")
    rows = _hub_rows(task, split) if folder is None else _file_rows(task, Path(folder), split)
    texts, labels = [], []
    for number, row in enumerate(rows):
        try:
            texts.append(tuple(_text(row[name]) for name in known.columns))
            labels.append(_label(row["label"], known))
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"The {split} split of {task} is not as GLUE publishes it: row {number} (the first "
                f"is 0) has {error!r}. Its columns are {', '.join(known.columns)} and label."
            ) from error
    return GlueData(
        [text if len(text) == 2 else text[0] for text in texts],
        np.array(labels, dtype=np.float64 if task == "stsb" else np.int64),
    )


def glue_examples(
    task: str, folder: str | Path | None = None, config: PreTrainedConfig | None = None
) -> list[dict[str, Any]]:
    """The train split as records, each with its texts and a ``label``.

    Parameters
    ----------
    task : str
        A key of `GLUE_TASKS`.
    folder : path, optional
        As for `read_glue`.
    config : PreTrainedConfig, optional
        Of the model that is to learn them: where it names the classes as the task does, labels are
        its numbers of them.
    """
    data, known = read_glue(task, folder, split="train"), _task(task)
    labels = data.labels
    numbers = _numbers(known, config) if config is not None else None
    if numbers is not None:
        labels = np.array(numbers)[labels]
    return [
        dict(zip(known.columns, (text,) if isinstance(text, str) else text, strict=True))
        | {"label": label}
        for text, label in zip(data.texts, labels.tolist(), strict=True)
    ]


def evaluate_glue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    data: GlueData | str | Path | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 32,
    max_seq_length: int | None = None,
) -> dict[str, float]:
    """Score a sequence classification (for STS-B: regression) model on a task's dev split.

    Parameters
    ----------
    model : PreTrainedModel
        With one output for STS-B, else one a class. Classes are matched by name where the model's
        ``config.label2id`` has the task's names, else by number.
    tokenizer : PreTrainedTokenizerBase
    task : str
        A key of `GLUE_TASKS`.
    data : GlueData or path, optional
        What to score on, or the folder for `read_glue`.
    limit : int, optional
        Only so many examples, evenly spaced.
    batch_size : int
    max_seq_length : int, optional
        In tokens.

    Returns
    -------
    dict of str to float
        The task's scores, between -1 and 1, and ``num_examples``.

    Raises
    ------
    DataError
        If the data cannot be read, or the model has not as many outputs as the task has classes.
    """
    known = _task(task)
    if not isinstance(data, GlueData):
        data = read_glue(task, data)
    data = data.spread(limit)
    logits = forward_texts(
        model,
        tokenizer,
        data.texts,
        read=lambda output, _batch: entry_of(output, "logits", model).float(),
        batch_size=batch_size,
        max_seq_length=max_seq_length,
    ).numpy()
    outputs = 1 if task == "stsb" else max(len(known.labels), 2)
    if logits.ndim != 2 or logits.shape[1] != outputs:
        raise DataError(
            f"{task} needs a sequence classification model with {outputs} output(s), "
            f"but this {type(model).__name__} gives logits of shape {logits.shape[1:]} a text."
        )
    scores = glue_scores(task, data.labels, _predictions(logits, known, model.config))
    return {**scores, "num_examples": len(data.texts)}


def glue_scores(task: str, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The scores of a task.

    Parameters
    ----------
    task : str
    labels, predictions : ndarray of shape (n,)
        Class numbers; for STS-B real numbers on any increasing scale.
    """
    # With what they bring, a hundred megabytes that pruning does not need.
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    functions = {
        "accuracy": accuracy_score,
        "f1": f1_score,
        "matthews": matthews_corrcoef,
        "spearman": lambda a, b: spearmanr(a, b).statistic,
        "pearson": lambda a, b: pearsonr(a, b).statistic,
    }
    return {name: float(functions[name](labels, predictions)) for name in _task(task).metrics}


def _task(name: str) -> GlueTask:
    if name not in GLUE_TASKS:
        raise DataError(f"Unknown GLUE task {name!r}; there are {', '.join(GLUE_TASKS)}.")
    return GLUE_TASKS[name]


def _predictions(logits: np.ndarray, task: GlueTask, config: PreTrainedConfig) -> np.ndarray:
    if logits.shape[1] == 1:
        return logits[:, 0]
    numbers = _numbers(task, config)
    if numbers is not None:
        logits = logits[:, numbers]
    predicted: np.ndarray = logits.argmax(axis=1)
    return predicted


def _numbers(task: GlueTask, config: PreTrainedConfig) -> list[int] | None:
    """The model's number of each class, where it has the task's names for them."""
    by_name = {name.lower(): int(number) for name, number in (config.label2id or {}).items()}
    if not task.labels or set(by_name) != set(task.labels):
        return None
    return [by_name[name] for name in task.labels]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text should be")
    return value


def _label(value: Any, task: GlueTask) -> float:
    if value in task.labels:
        return task.labels.index(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the label {value!r}")
    return number


def _hub_rows(task: str, split: str) -> Sequence[dict[str, Any]]:
    name = HUB_SPLITS[split]
    if task == "mnli" and split == "dev":
        name = "validation_matched"
    return hub_rows(HUB_NAME, name, config=task, instead=f"a folder that holds {task}/{split}.tsv")


def _file_rows(task: str, folder: Path, split: str) -> Sequence[dict[str, Any]]:
    path = folder / task / f"{split}.tsv"
    with reading_text(path) as file, long_fields():
        # GLUE's files know no quoting: a quotation mark is text.
        reader = csv.DictReader(
            file,
            fieldnames=COLA_COLUMNS if task == "cola" else None,
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
        )
        return [{FILE_COLUMNS.get(k, k): v for k, v in row.items()} for row in reader]
