"""What the search for a budget will take, known before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from stat_prune.choosing.budget.whole_model import MAX_REMEMBERED, size_of_part
from stat_prune.families import transformer_layers
from stat_prune.pipeline.budgeting.efforts import BY_SEQUENCE, BY_TOKEN, NUM_PARTS
from stat_prune.pipeline.budgeting.starts import MAX_STARTS
from stat_prune.settings.methods import Method
from stat_prune.settings.settings import HELD_OUT_PART
from stat_prune.settings.targets import Target

#: Of an evaluation on average: the layers behind the first that has changed, on the sequences
#: before it is given up; and the blocks that have to be folded for it.
COMPUTED, FOLDED = 0.5, 0.5


def searches(recipe: Method, target: Target) -> bool:
    """Whether whole models are measured for a target."""
    return recipe.allocation == "searched" and not target.bounds_error


@dataclass(frozen=True)
class SearchCost:
    """At most; less where there are few examples, or where the search ends early.

    Attributes
    ----------
    passes : float
        Forward passes over the calibration set.
    folds : float
        Times that all blocks are folded.
    sequences : tuple of int
        What is measured on: each set of calibration sequences, and those held out.
    """

    passes: float
    folds: float
    sequences: tuple[int, ...]

    @classmethod
    def of(
        cls, num_samples: int, *, by_token: bool, effort: str, second_pass: bool = False
    ) -> SearchCost:
        """By the number of calibration sequences, and whether each token has an output."""
        spent = (BY_TOKEN if by_token else BY_SEQUENCE)[effort]
        rounds = spent.rounds_before(second_pass=second_pass)
        compared = spent.num_compared(num_samples)
        sets = {1: compared, **{n: min(n * compared, num_samples) for n, _ in rounds}}
        # Each set with the dense model and where a round begins, and the first with all starts.
        computed, folds = float(sum(sets.values()) + MAX_STARTS * compared), float(MAX_STARTS)
        for times, passes in rounds:
            computed += sets[times] + passes * num_samples
            folds += 1 + FOLDED * passes * num_samples / (COMPUTED * sets[times])
        held_out = num_samples // HELD_OUT_PART if rounds else 0
        computed += (2 + len(rounds)) * held_out
        sequences = tuple(count for count in (*sets.values(), held_out) if count)
        return cls(computed / max(num_samples, 1), folds, sequences)

    def remembered(self, model: PreTrainedModel, length: int, outputs: int) -> int:
        """Entries of outputs that are kept: of the dense model, and of the layers of two choices.

        Parameters
        ----------
        model : PreTrainedModel
        length : int
            Tokens of a sequence.
        outputs : int
            Entries of the model's output for a token.
        """
        width = getattr(model.config.get_text_config(), "hidden_size", 0)
        of_layers = [n * length * width * len(transformer_layers(model)) for n in self.sequences]
        of_model = [n * length * outputs for n in self.sequences]
        return 2 * max((n for n in of_layers if n <= MAX_REMEMBERED), default=0) + sum(
            n for n in of_model if n <= MAX_REMEMBERED
        )

    def batch_tokens(self, length: int, batch_tokens: int) -> int:
        """Tokens of the largest batch that is measured on, where those of collecting are known."""
        return min(size_of_part(max(self.sequences), NUM_PARTS) * length, batch_tokens)


def passing_states(variants: int, tables: int) -> int:
    """Of each token, those that are on disk where variants are compared layer by layer.

    Of the dense model and all variants before a layer and behind it, and as they were embedded by
    the dense table and by factored ones.
    """
    return 2 * (1 + variants) + 1 + tables
