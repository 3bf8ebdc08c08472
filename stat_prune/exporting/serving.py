"""What a program can hold of a model whose layers are to differ in size: known before pruning."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from stat_prune.errors import SettingsError, UnsupportedArchitectureError
from stat_prune.exporting.llama_cpp import gguf_architecture
from stat_prune.exporting.mlx_folder import check_mlx
from stat_prune.model.blocks import Block
from stat_prune.settings.settings import Settings
from stat_prune.settings.targets import Target
from stat_prune.surgery.per_layer_config import says_heads, says_layers

#: Programs that take a folder of equal layers by classes of their own.
_READ_CONFIGS = ("llama.cpp", "mlx", "vllm")


def check_servable(
    model: PreTrainedModel, blocks: Sequence[Block], settings: Settings, targets: Sequence[Target]
) -> None:
    """Refuse what the program of ``settings.serve_with`` could not hold once it is pruned.

    Parameters
    ----------
    model : PreTrainedModel
        The dense one.
    blocks : sequence of Block
        Those to be pruned.
    settings : Settings
    targets : sequence of Target

    Raises
    ------
    UnsupportedArchitectureError, SettingsError
        Saying what to use or to leave out.
    """
    program = settings.serve_with
    if program in _READ_CONFIGS and any(target.factors for target in targets):
        raise SettingsError(
            f"serve_with={program!r} has no form for token embeddings or heads of two factors. Aim "
            "at the blocks alone (MACs, Parameters), or serve with 'onnx' or 'openvino'."
        )
    if program in ("onnx", "openvino"):
        check_graph(model)
    if program not in _READ_CONFIGS or settings.uniform:
        return
    removes = program != "llama.cpp"
    if program == "llama.cpp":
        removes = gguf_architecture(model, even=False) == "openelm"
    elif program == "mlx":
        check_mlx(model)
    else:
        _check_vllm(model, blocks)
    if settings.remove_blocks and removes:
        raise SettingsError(
            f"serve_with={program!r} has no form for a {type(model).__name__} without all of its "
            "heads or neurons in a layer. Leave remove_blocks out."
        )


def check_graph(model: PreTrainedModel) -> None:
    """Refuse a model that is not written as a graph.

    Raises
    ------
    UnsupportedArchitectureError
    """
    if model.main_input_name != "input_ids" or model.config.is_encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{model.__class__.__name__} is not one stack of layers that reads text; graphs of "
            "others are not written here. transformers.exporters takes the model as it is."
        )


def _check_vllm(model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    """Its backend for transformers models finds the sizes of layers in the config alone."""
    if not says_layers(model):
        raise UnsupportedArchitectureError(
            f"vLLM is told the sizes of layers where they are one stack that reads text, each with "
            f"weights of its own; {type(model).__name__} is none. Serve it with transformers, or "
            "prune it with uniform=True."
        )
    if any(block.kind == "heads" for block in blocks) and not says_heads(model.config):
        raise UnsupportedArchitectureError(
            f"A {type(model.config).__name__} computes the size of a head from their number, so "
            "that vLLM cannot be told of fewer. Prune neurons alone: target=MACs({'neurons': 0.5}) "
            "or ignore='heads'."
        )
