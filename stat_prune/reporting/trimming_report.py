"""What trimming a vocabulary has changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrimmingReport:
    """What trimming has changed.

    Attributes
    ----------
    num_texts, num_tokens : int
        Read.
    vocabulary_before, vocabulary : int
        Rows of the embeddings.
    parameters_before, parameters : int
        Of the whole model; of one of sentence-transformers, of its transformer.
    unseen : float or None
        Fraction of the tokens of every tenth text that the other texts do not need: what is to be
        expected of further texts of the kind. They are split otherwise. None where there are fewer
        than ten texts.
    """

    num_texts: int
    num_tokens: int
    vocabulary_before: int
    vocabulary: int
    parameters_before: int
    parameters: int
    unseen: float | None

    def __str__(self) -> str:
        lines = [
            f"texts        {self.num_texts:,}, of {self.num_tokens:,} tokens",
            f"vocabulary   {self.vocabulary_before:,} -> {self.vocabulary:,}",
            f"parameters   {self.parameters_before:,} -> {self.parameters:,} "
            f"({self.parameters / self.parameters_before:.1%} kept)",
        ]
        if self.unseen is not None:
            lines.append(
                f"unseen       {self.unseen:.2%} of the tokens of every tenth text are in no other"
            )
        return "\n".join(lines)

    def in_one_line(self) -> str:
        """For the account of a pruned model that was trimmed."""
        return (
            f"vocabulary {self.vocabulary_before:,} -> {self.vocabulary:,} by {self.num_texts:,} "
            f"texts; {self.parameters_before:,} -> {self.parameters:,} parameters"
        )
