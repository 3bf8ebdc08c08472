"""Graphs for ONNX Runtime and OpenVINO, written by the exporters that transformers has."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.errors import SettingsError, StatPruneError, UnsupportedArchitectureError
from stat_prune.exporting.sentence_pooling import with_pooling
from stat_prune.exporting.serving import check_graph

try:
    from transformers import exporters
except ImportError as error:
    raise StatPruneError(
        "Graphs are written by transformers.exporters, which this version of transformers lacks: "
        "pip install -U transformers"
    ) from error

#: The types that are written.
TYPES = ("f32", "int8")

#: Packages that a form needs, for int8 as well.
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}


def write_onnx(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    type: str = "f32",
) -> list[str]:
    """Write a graph for ONNX Runtime, of any batch and length, into an empty folder.

    Parameters
    ----------
    model : PreTrainedModel
        An encoder, with or without a head, or a decoder, whose graph takes a cache and gives it.
        Behind the transformer of a sentence encoder comes its pooling, as ``sentence_embedding``.
    tokenizer : PreTrainedTokenizerBase, optional
    folder : Path
    type : {"f32", "int8"}
        ``"int8"``: weights channel by channel, activations as they come; of encoders.

    Returns
    -------
    list of str
        What is to be said of it.

    Raises
    ------
    UnsupportedArchitectureError, SettingsError
    """
    _check(model, type, "onnx")
    quantizer = None
    if type == "int8":
        dynamic = exporters.OnnxRuntimeDynamicConfig(per_channel=True)
        quantizer = exporters.OnnxRuntimeQuantizer(dynamic)
    settings = exporters.OnnxConfig(dynamic=True, quantizer=quantizer)
    return _write(model, tokenizer, folder, exporters.OnnxExporter, settings)


def write_openvino(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    type: str = "f32",
    calibration: Sequence[str] | None = None,
) -> list[str]:
    """Write a graph for OpenVINO, of any batch and length, into an empty folder.

    Parameters
    ----------
    model, tokenizer, folder
        As for `write_onnx`; a decoder's graph keeps its cache by itself.
    type : {"f32", "int8"}
        ``"int8"`` rounds weights and activations, by ranges seen on `calibration`; of encoders.
    calibration : sequence of str, optional
        A few hundred texts.

    Returns
    -------
    list of str
        What is to be said of it.

    Raises
    ------
    UnsupportedArchitectureError, SettingsError
    """
    _check(model, type, "openvino")
    quantizer = None
    if type == "int8":
        if tokenizer is None or not calibration:
            raise SettingsError(
                "OpenVINO's int8 takes the ranges of activations from texts: pass calibration=, a "
                "few hundred of them (--calibrate FILE), and the tokenizer."
            )
        batches = [_tokenized(tokenizer, [text]) for text in calibration]
        quantizer = exporters.NNCFOpenVINOQuantizer(calibration_dataset=batches)
    settings = exporters.OpenVINOConfig(dynamic=True, quantizer=quantizer)
    return _write(model, tokenizer, folder, exporters.OpenVINOExporter, settings)


def _check(model: PreTrainedModel, type: str, to: str) -> None:
    if type not in TYPES:
        raise SettingsError(f"type={type!r} is none of {', '.join(TYPES)}.")
    missing = [name for name in PACKAGES[to] if find_spec(name) is None]
    if missing:
        raise StatPruneError(
            f"to={to!r} needs {', '.join(missing)}: pip install 'stat-prune[{to}]'"
        )
    check_graph(model)
    if type == "int8" and _writes_text(model):
        raise UnsupportedArchitectureError(
            "int8 graphs are written of encoders. For a decoder in 8 bits, export to gguf with "
            "type='q8_0'."
        )


def _writes_text(model: PreTrainedModel) -> bool:
    return bool(model.can_generate()) and not getattr(model.config, "is_encoder_decoder", False)


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    exporter: Any,
    settings: Any,
) -> list[str]:
    inputs = _sample(model, tokenizer)
    notes: list[str] = []
    with quiet():
        if _writes_text(model):
            written = exporter().export_for_generation(
                model, inputs, settings, multi_token_decode=True
            )
            # What takes several tokens behind a cache takes them behind an empty one too.
            written.components.pop("prefill")
        else:
            network, notes = with_pooling(model)
            written = exporter().export(network, inputs, settings)
        written.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return notes


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, Tensor]:
    return dict(tokenizer(texts, padding=len(texts) > 1, truncation=True, return_tensors="pt"))


def _sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Tensor]:
    """Inputs to trace with, of the names that the tokenizer gives."""
    ids = torch.arange(3, 3 + 2 * 6).reshape(2, 6) % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names = [] if tokenizer is None else tokenizer.model_input_names
    if "token_type_ids" in names:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes of exporters on what they do, which torch prints to stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        logging.disable(before)
