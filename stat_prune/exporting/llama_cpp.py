"""Which of llama.cpp's architectures holds a model; known before anything is written."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.exporting.decoders import check_llama_like

#: By type of model, llama.cpp's architecture for layers of one size, and for a size of each layer.
EVEN = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
UNEVEN = {"llama": "deci", "mistral": "deci", "qwen2": "deci", "qwen3": "openelm"}

#: Those whose rotary positions turn neighbouring channels, and not the two halves of a head.
TURN_NEIGHBOURS = ("llama", "deci")


def gguf_architecture(model: PreTrainedModel, *, even: bool) -> str:
    """The architecture for a model whose layers are all of one size, or `even` is false.

    Raises
    ------
    UnsupportedArchitectureError
        If there is none; the message says what to prune instead.
    """
    check_llama_like(model, "llama.cpp")
    config: Any = model.config
    architecture = (EVEN if even else UNEVEN)[config.model_type]
    rope = config.rope_parameters["rope_type"]
    known = ("default", "linear", "llama3")[: 3 if architecture in TURN_NEIGHBOURS else 2]
    if rope not in known:
        raise UnsupportedArchitectureError(
            f"Rotary positions of the type {rope!r} are not written for llama.cpp's architecture "
            f"{architecture!r} ({', '.join(known)} are). Prune with uniform=True, and give the "
            "folder to llama.cpp's convert_hf_to_gguf.py."
        )
    if architecture == "openelm":
        _check_openelm(model)
    return architecture


def _check_openelm(model: PreTrainedModel) -> None:
    """Its only architecture with norms of heads and a size a layer has no place for much else."""
    if not model.config.tie_word_embeddings:
        raise UnsupportedArchitectureError(
            "llama.cpp holds a Qwen3 whose layers differ in size only where output and input share "
            "their embeddings (tie_word_embeddings). Prune it with uniform=True."
        )
    biased = [name for name, _ in model.named_parameters() if name.endswith("_proj.bias")]
    if biased:
        raise UnsupportedArchitectureError(
            f"llama.cpp holds a Qwen3 whose layers differ in size only without biases, and there "
            f"is {biased[0]}. Prune it without remove_blocks=True, which leaves biases behind."
        )
