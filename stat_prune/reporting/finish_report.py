"""What a finish has fitted, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finish:
    """How a pruned model was fitted to the dense one's outputs.

    Attributes
    ----------
    kind : {"scales", "lora", "weights"}
    numbers : int
        How many were fitted.
    sequences, held_out_sequences : int
        Fitted on, and judged on.
    distances : list of float
        Of the output from the dense model's on the sequences held out: before, and after each part
        of the fit.
    taken : int
        Which of these is the model's; 0 where its start was kept.
    passes : float
        Over the sequences fitted on, until it was stopped.
    objective : str or None
        What the distance is of, where that was said; reports of the first versions lack it.
    """

    kind: str
    numbers: int
    sequences: int
    held_out_sequences: int
    distances: list[float]
    taken: int
    passes: float
    objective: str | None = None

    def __str__(self) -> str:
        found = ", ".join(f"{value:.3g}" for value in self.distances)
        of = "the output" if self.objective is None else self.objective
        kept = "the start kept" if self.taken == 0 else f"{self.distances[self.taken]:.3g} taken"
        return (
            f"{self.kind}; {self.numbers:,} numbers fitted in {self.passes:.3g} passes over "
            f"{self.sequences:,} sequences; distance of {of} on {self.held_out_sequences} "
            f"held out: {found}; {kept}"
        )
