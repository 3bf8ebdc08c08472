"""What a sentence encoder is to keep: the embeddings that it makes of its transformer's output."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import Tensor, nn

from stat_prune.measuring.objectives import relative_error
from stat_prune.model.running import Batch, stubbed
from stat_prune.model.whole_encoders import transformer_of


class SentenceEmbeddings:
    """Embeddings of a `SentenceTransformer` or `SparseEncoder`, by its own modules.

    Parameters
    ----------
    whole : nn.Module
        Unchanged.
    """

    def __init__(self, whole: nn.Module) -> None:
        dense = transformer_of(whole)
        # Its outputs are given, so that the copy needs no weights.
        hollow = {id(one): one.to("meta") for one in chain(dense.parameters(), dense.buffers())}
        self._whole = copy.deepcopy(whole, hollow)
        self._transformer = transformer_of(self._whole)
        self._behind = list(self._whole.children())[1:]
        for module in self._behind:
            module.eval().requires_grad_(False)

    def distance(self, dense: Any, pruned: Any, batch: Batch) -> Tensor:
        """Squared relative error of the embeddings, of two outputs of the transformer.

        Returns
        -------
        Tensor of shape (batch,), floating point
        """
        return relative_error(*(self._embeddings(output, batch) for output in (dense, pruned)))

    def _embeddings(self, output: Any, batch: Batch) -> Tensor:
        device = output[0].device
        for module in self._behind:
            module.to(device)
        features = {name: value.to(device) for name, value in batch.items()}
        with stubbed({self._transformer: lambda: output}):
            found: Tensor = self._whole(features)["sentence_embedding"]
        return found
