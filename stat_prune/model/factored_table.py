"""What became of embeddings or a head; without torch, as reports are read without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FactoredTable:
    """What a report says of factored embeddings, or of a factored head.

    Attributes
    ----------
    name : str
        Path below the base model; of a head, below the model itself.
    num_rows, width, rank : int
        Tokens, numbers of each embedding, and rank of the factors.
    parameters_before, parameters : int
    decomposition : str
        "truncated SVD": no factors of that rank have a smaller `error`.
    error : float
        Relative Frobenius error of the rows around their mean, weighed as `decompose_table` does;
        of a head's logits around their mean, as `decompose_head` does.
    tied_heads : list of str
        Paths of the heads that share the factors.
    shares : dict of str to float, or None
        Where one budget is of blocks and embeddings: the ways to share it out that were compared,
        and how far each takes the model's output from the dense one's.
    corrected : dict of str to float, or None
        The same on held-out sequences, of those whose blocks were corrected for the factors.
    num_exact : int
        Rows that are kept as they are beside the factors: those that weigh the most.
    """

    name: str
    num_rows: int
    width: int
    rank: int
    parameters_before: int
    parameters: int
    decomposition: str
    error: float
    tied_heads: list[str]
    shares: dict[str, float] | None = None
    corrected: dict[str, float] | None = None
    num_exact: int = 0

    def __str__(self) -> str:
        tied = f", shared with {', '.join(self.tied_heads)}" if self.tied_heads else ""
        exact = f", {self.num_exact:,} rows exact" if self.num_exact else ""
        share = self.parameters / self.parameters_before
        return (
            f"{self.num_rows:,} x {self.width} by rank {self.rank} ({self.decomposition}){exact}"
            f"{tied}; "
            f"error {self.error:.4f}; parameters {self.parameters_before:,} -> "
            f"{self.parameters:,} ({share:.1%} kept)"
            + (f", the best of {len(self.shares)} shares of the budget" if self.shares else "")
        )
