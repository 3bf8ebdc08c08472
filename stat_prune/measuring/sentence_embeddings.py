"""What a sentence encoder is to keep: the embeddings that it makes of its transformer's output."""

from __future__ import annotations

import copy
import hashlib
import json
from itertools import chain
from typing import Any

from torch import Tensor, nn

from stat_prune.machine.digests import add_tensor
from stat_prune.measuring.objectives import relative_error
from stat_prune.model.running import Batch, stubbed
from stat_prune.model.whole_encoders import encoder_kind, transformer_of


def settings_inside(whole: nn.Module, objective: Any = None) -> dict[str, Any]:
    """With what the transformer in a model of sentence-transformers is pruned.

    Its texts are read without masks, and its budget is spread for its own embeddings where no
    objective is given; that of a reranker for its scores, the output of its transformer.
    """
    if objective is None and encoder_kind(whole) != "CrossEncoder":
        objective = SentenceEmbeddings(whole).distance
    return {"mask_fraction": 0.0, "objective": objective}


def digest_behind(objective: object) -> dict[str, str]:
    """Digest of what an objective computes with besides the transformer; of most, nothing."""
    whole = getattr(objective, "__self__", None)
    return {"modules behind": whole.digest()} if isinstance(whole, SentenceEmbeddings) else {}


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
            # Where it does not train this one computes in place, through which goes no gradient.
            module.train(type(module).__name__ == "SpladePooling").requires_grad_(False)

    def distance(self, dense: Any, pruned: Any, batch: Batch) -> Tensor:
        """Squared relative error of the embeddings, of two outputs of the transformer.

        Returns
        -------
        Tensor of shape (batch,), floating point
        """
        return relative_error(*(self._embeddings(output, batch) for output in (dense, pruned)))

    def digest(self) -> str:
        """sha256 of settings and weights of what is behind the transformer."""
        digest = hashlib.sha256()
        for module in self._behind:
            own: Any = getattr(module, "get_config_dict", dict)()
            digest.update(type(module).__name__.encode())
            digest.update(json.dumps(own, sort_keys=True, default=repr).encode())
            for name, tensor in module.state_dict().items():
                add_tensor(digest, name, tensor)
        return digest.hexdigest()

    def _embeddings(self, output: Any, batch: Batch) -> Tensor:
        device = output[0].device
        for module in self._behind:
            module.to(device)
        features = {name: value.to(device) for name, value in batch.items()}
        with stubbed({self._transformer: lambda: output}):
            found: Tensor = self._whole(features)["sentence_embedding"]
        return found
