"""The correction of all that is corrected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from stat_prune.model.folded_consumer import FoldedConsumer, InputCorrection
from stat_prune.surgery.narrowing import NarrowedHeads, narrowed_copy


@dataclass(frozen=True)
class Solution:
    """What all that is corrected becomes.

    Attributes
    ----------
    folded : sequence of FoldedConsumer
    head : sequence of InputCorrection
        For layers behind the blocks, by their paths below the model.
    narrowed : sequence of NarrowedHeads
        Told what `folded` says of the producers.
    """

    folded: Sequence[FoldedConsumer]
    head: Sequence[InputCorrection] = ()
    narrowed: Sequence[NarrowedHeads] = ()

    def cut_copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of a model that is cut so, to be measured."""
        return narrowed_copy(model, self.folded, self.narrowed, self.head)
