"""What lies beside the weights of a model, and comes along when a pruned copy of it is saved.

Processors, licences, and of a sentence encoder or reranker the modules behind its transformer.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel

from stat_prune.errors import LeftBehindWarning, ModelWarning

MODULES = "modules.json"

#: Of a whole sentence encoder, and of how its transformer is called.
_ENCODER, _TRANSFORMER = "config_sentence_transformers.json", "sentence_*_config.json"

#: What makes a model's inputs, and says what may be done with it.
_COMES = (
    _TRANSFORMER,
    "preprocessor_config.json",
    "processor_config.json",
    "*_preprocessor_config.json",
    "*_processor_config.json",
    "chat_template.*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)

#: What a tokenizer writes by itself where one is given.
_TOKENIZER = (
    "tokenizer.*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.spm",
    "spiece.model",
    "sentencepiece*.model",
)

#: Weights and states of training, and what every saved folder has its own of.
_STAYS = (
    ".*",
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.gguf",
    "*.index.json",
    "checkpoint-*",
    "__pycache__",
    "config.json",
    "README.md",
    "modeling_stat_prune.py",
    "stat_prune*",
)

#: Of a file that is copied; texts that describe are smaller.
_MAX_BYTES = 64 * 2**20

#: The kind of model that a task of sentence-transformers is for, by the end of its class's name.
_HEADS: dict[str, str] = {
    "sequence-classification": "ForSequenceClassification",
    "fill-mask": "ForMaskedLM",
    "text-generation": "ForCausalLM",
}


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder, sparse encoder or reranker, in the folder that has its modules.json.

    Attributes
    ----------
    folder : Path
    modules : list of dict
        What modules.json says, the transformer first.
    kind : str
        Its class in sentence-transformers.
    """

    folder: Path
    modules: list[dict[str, str]]
    kind: str

    @property
    def transformer(self) -> Path:
        """The folder of its transformer: its own, or one in that, as old versions have it."""
        return self.folder / self.modules[0]["path"]

    @property
    def max_seq_length(self) -> int | None:
        """Tokens that it reads of a text, where its settings say so."""
        length: Any = _settings_in(self.transformer).get("max_seq_length")
        return length if isinstance(length, int) else None

    def copy(self, folder: Path) -> None:
        """Put all but the transformer, which `folder` has, into it."""
        first, *others = self.modules
        written = json.dumps([{**first, "path": ""}, *others], indent=2)
        (folder / MODULES).write_text(written, encoding="utf-8")
        if (self.folder / _ENCODER).is_file():
            shutil.copy(self.folder / _ENCODER, folder)
        for one in others:
            # Modules without settings, such as Normalize, may have no folder.
            if (self.folder / one["path"]).is_dir():
                shutil.copytree(self.folder / one["path"], folder / one["path"])


def source_of(model: PreTrainedModel) -> Path | None:
    """The folder that a model, or what it was pruned from, was loaded from; None if of none.

    That of a repository of the Hub is its local copy.
    """
    noted = getattr(model, "stat_prune_source", None)
    name = noted or model.name_or_path
    if not name:
        return None
    folder: Path | None = Path(name)
    if not os.path.isdir(name):
        folder = local_copy(name, getattr(model.config, "_commit_hash", None))
    return None if folder is None else Path(os.path.realpath(folder))


def local_copy(name: str, revision: str | None = None) -> Path | None:
    """The folder that holds what was fetched of a repository of the Hub; None where nothing was."""
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def leave_source(model: PreTrainedModel) -> None:
    """Let a model that was pruned, in place, no longer go by the name of the dense one.

    What is trained on it later (an adapter) would name the dense folder as its base. Where that is
    stays noted, for what lies beside.
    """
    note_source(model, source_of(model))
    name_model(model, "")


def note_source(model: PreTrainedModel, source: Path | None) -> None:
    """Let a model remember where that lies which belongs beside its weights."""
    if source is not None:
        vars(model)["stat_prune_source"] = os.path.realpath(source)


def name_model(model: PreTrainedModel, name: str) -> None:
    """Let a model go by the name of the folder it is in."""
    model.name_or_path = name
    model.config.name_or_path = name


def encoder_around(source: Path) -> Encoder | None:
    """The sentence encoder whose transformer lies in `source`; None where there is none."""
    return _encoder_in(source) or _encoder_in(source.parent, source.name)


def encoder_of(source: Path, model: PreTrainedModel) -> Encoder | None:
    """The sentence encoder whose transformer lies in `source`, where `model` can take its place."""
    encoder = encoder_around(source)
    if encoder is None:
        return None
    head = _head_in(source)
    fits = type(model).__name__.endswith(head) if head else model.base_model is model
    return encoder if fits else None


def warn_if_opened_as_stock(model: PreTrainedModel) -> None:
    """Say where sentence-transformers takes a stock class, whatever the folder's code.

    It does for the encoders of encoder-decoders, which then have the sizes that configs can say.
    """
    config = model.config
    encoder_decoder = config.is_encoder_decoder or config.model_type.endswith("t5")
    if encoder_decoder and getattr(config, "stat_prune", None):
        warnings.warn(
            f"sentence-transformers opens the encoder of {type(model).__name__} by its stock "
            "class, which takes no sizes that the config cannot say. For a sentence encoder that "
            "it opens, prune with uniform=True and target=MACs({'neurons': 0.5}). stat_prune.load "
            "opens this one, without its pooling.",
            ModelWarning,
            stacklevel=4,
        )


def is_headless_encoder(source: Path) -> bool:
    """Whether `source` holds the transformer of a sentence encoder that is used without a head."""
    return encoder_around(source) is not None and not _head_in(source)


def _head_in(source: Path) -> str:
    """How the class of a sentence encoder's transformer ends; ``""`` for the base model's."""
    return _HEADS.get(_settings_in(source).get("transformer_task", ""), "")


def _settings_in(source: Path) -> dict[str, str]:
    """How a sentence encoder calls its transformer in `source`."""
    settings = next(iter(sorted(source.glob(_TRANSFORMER))), None)
    return {} if settings is None else _read(settings)


def copy_beside(
    source: Path, folder: Path, encoder: Encoder | None, *, has_tokenizer: bool
) -> None:
    """Copy what is known to belong to a model and is not in `folder` yet; warn of what is left."""
    if encoder is not None and not (folder / MODULES).exists():
        encoder.copy(folder)
    patterns = _COMES if has_tokenizer else _COMES + _TOKENIZER
    silent = _STAYS + _TOKENIZER if has_tokenizer else _STAYS
    parts = {one["path"] for one in encoder.modules} if encoder is not None else set()
    left = []
    for path in sorted(source.iterdir()):
        name = path.name
        if (folder / name).exists() or name in parts or _matches(name, silent):
            continue
        if _matches(name, patterns) and path.is_file() and path.stat().st_size <= _MAX_BYTES:
            shutil.copy(path, folder)
        else:
            left.append(name)
    if left:
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        warnings.warn(
            f"Of what lies beside the weights in {str(source)!r}, this was not copied, as nothing "
            f"says that it belongs to the pruned model: {shown}. Copy what does.",
            LeftBehindWarning,
            stacklevel=4,
        )


def download_beside(name: str) -> None:
    """Put what a repository of the Hub has beside its weights into the local copy."""
    # What is missing, or out of reach, is no obstacle to pruning the transformer.
    try:
        snapshot_download(name, allow_patterns=[MODULES, _ENCODER, *_COMES, "[0-9]*_*/*"])
    except (OSError, ValueError):
        return


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _read(path: Path) -> dict[str, str]:
    """A mapping in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def encoder_above(source: Path) -> Encoder | None:
    """The sentence encoder in `source` whose transformer lies in a folder of its own there."""
    return _encoder_in(source, None)


def _encoder_in(folder: Path, transformer: str | None = "") -> Encoder | None:
    """The encoder in a folder whose transformer is in this part of it, or in any for None."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        paths = [str(one["path"]) for one in modules]
        kinds = [str(one["type"]) for one in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Code of a repository's own is not copied.
    if not kinds or not all(kind.startswith("sentence_transformers.") for kind in kinds):
        return None
    apart = paths if transformer is None else paths[1:]
    inside = all(path and os.path.basename(path) == path for path in apart)
    here = transformer is None or paths[0] == transformer
    if not (kinds[0].endswith(".Transformer") and here and inside):
        return None
    return Encoder(
        folder, modules, _read(folder / _ENCODER).get("model_type", "SentenceTransformer")
    )
