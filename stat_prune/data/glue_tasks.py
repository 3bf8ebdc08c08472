"""The tasks of GLUE. The command line lists them, so this imports nothing that takes time.

References
----------
.. [1] Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
   Understanding", ICLR 2019.
.. [2] Kwon et al., "A Fast Post-Training Pruning Framework for Transformers", NeurIPS 2022
   (arXiv:2204.09656): the average sequence lengths at which MACs are counted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes
    ----------
    columns : tuple of str
        Of the texts.
    metrics : tuple of str
        Names of the scores, the one usually quoted first.
    labels : tuple of str
        Class names in the order of the class numbers; empty for a regression and where the files
        have numbers.
    average_length : float or None
        Tokens a sequence at which MACs are counted, padding not counted [2]_.
    """

    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    labels: tuple[str, ...] = ()
    average_length: float | None = None


ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS = {
    "cola": GlueTask(("sentence",), ("matthews",)),
    "sst2": GlueTask(("sentence",), average_length=25.16),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("accuracy", "f1"), average_length=53.24),
    "stsb": GlueTask(("sentence1", "sentence2"), ("spearman", "pearson"), average_length=31.47),
    "qqp": GlueTask(("question1", "question2"), ("accuracy", "f1"), average_length=30.55),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        average_length=39.05,
    ),
    "qnli": GlueTask(("question", "sentence"), labels=ENTAILMENT, average_length=50.97),
    "rte": GlueTask(("sentence1", "sentence2"), labels=ENTAILMENT),
}
