"""llama.cpp's server on this machine, asked by token ids; it needs the package xllamacpp."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LlamaCpp:
    """What a running llama-server answers to token ids."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        request = urllib.request.Request(
            f"{self.url}/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def tokenize(self, text: str) -> list[int]:
        """Ids, with what begins a sequence."""
        answer = self.ask("tokenize", {"content": text, "add_special": True})
        return [int(token) for token in answer["tokens"]]

    def continuation(self, ids: Sequence[int], count: int) -> list[int]:
        """Greedily chosen ids; fewer where the model ends the text."""
        answer = self.ask(
            "completion",
            {"prompt": list(ids), "n_predict": count, "temperature": 0, "return_tokens": True},
        )
        return [int(token) for token in answer["tokens"]]

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Of each id but the first, given those before it."""
        return [self._log_probability(ids[:i], ids[i]) for i in range(1, len(ids))]

    def _log_probability(self, ids: Sequence[int], then: int) -> float:
        # The bias has the token chosen; the probability that is told is the one without it.
        answer = self.ask(
            "completion",
            {
                "prompt": list(ids),
                "n_predict": 1,
                "temperature": 0,
                "n_probs": 1,
                "cache_prompt": True,
                "logit_bias": [[then, 1e4]],
            },
        )
        (chosen,) = answer["completion_probabilities"]
        assert chosen["id"] == then
        return float(chosen["logprob"])


@contextmanager
def serving(file: Path, context_length: int) -> Iterator[LlamaCpp]:
    """A server of one file, on one thread, in this process."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = context_length
    settings.n_parallel = 1
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    # By default keys and values are kept in half precision.
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)
    yield LlamaCpp(server.listening_address)
    del server
