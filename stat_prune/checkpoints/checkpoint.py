"""Save a pruned model as a folder that transformers can read."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.beside import (
    copy_beside,
    encoder_of,
    name_model,
    source_of,
    warn_if_opened_as_stock,
)
from stat_prune.checkpoints.model_card import model_card
from stat_prune.checkpoints.replacing import (
    MANIFEST_FILE,
    check_replaceable,
    write_manifest,
    written_files,
)
from stat_prune.checkpoints.shards import join_shards
from stat_prune.errors import SaveError
from stat_prune.machine.atomic import replace_directory
from stat_prune.model import modeling_stat_prune
from stat_prune.model.dispatched import is_dispatched, stored_tensors
from stat_prune.model.processors import text_tokenizer
from stat_prune.model.whole_encoders import encoder_kind, transformer_of
from stat_prune.settings.arguments import check_path


def as_pruned_class(model: PreTrainedModel) -> PreTrainedModel:
    """Let `model`, in place, be of the class that rebuilds its layer sizes when it is loaded.

    The class is a subclass of the model's stock class, with its name and its forward method;
    `save_pretrained` then also writes the modeling file and `auto_map`. A model whose config has
    no record of layer sizes (``config.stat_prune``) is of its stock class again, and one whose
    class transformers does not know stays what it is. A class of the user's own, registered with
    transformers' auto classes, has no modeling file: it reloads where it is registered.

    Returns
    -------
    PreTrainedModel
        The same object.
    """
    stock = stock_class(model)
    if stock is None:
        return model
    in_transformers = getattr(transformers, stock.__name__, None) is stock
    if getattr(model.config, "stat_prune", None):
        model.__class__ = modeling_stat_prune.pruned_class(stock)
        _introduce(type(model), model.config)
        modeling_stat_prune.keep_names(model)
        if in_transformers:
            classes = modeling_stat_prune.auto_classes(type(model.config))
            model.config.auto_map = {
                auto: f"modeling_stat_prune.{made.__name__}" for auto, made in classes.items()
            }
    elif type(model) is not stock:
        model.__class__ = stock
        if in_transformers:
            del model.config.auto_map
    return model


def _introduce(model_class: type[PreTrainedModel], config: transformers.PreTrainedConfig) -> None:
    """Let transformers note a class as it does when it makes the first model of it.

    It looks there for what a forward pass is to record (hidden states, attentions), and finds
    nothing for a class that no model was made of.
    """
    made = model_class.__new__(model_class)
    PreTrainedModel.__init__(made, copy.deepcopy(config))


def stock_class(model: PreTrainedModel) -> type[PreTrainedModel] | None:
    """The class that `model` is an instance of, seen through our own subclass; None if unknown."""
    cls = type(model)
    # A folder's copy of the modeling file is a module of its own, under another package.
    if cls.__module__.rpartition(".")[2] == "modeling_stat_prune":
        cls = cls.__mro__[1]
    known = modeling_stat_prune.stock_class(cls.__name__, type(model.config))
    return cls if known is cls else None


def check_class(model: PreTrainedModel) -> None:
    """Refuse a class that no saved folder could rebuild.

    Raises
    ------
    SaveError
    """
    if stock_class(model) is None:
        raise SaveError(
            f"{type(model).__name__} is not a class that transformers knows, so the saved folder "
            "could not rebuild it. Register it (AutoConfig.register, AutoModel.register), or prune "
            "the transformers model inside it."
        )


def check_output_directory(directory: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Check, before work is spent, that a checkpoint can go to `directory`.

    Raises
    ------
    SaveError
        If it exists and `overwrite` is False; if it exists and holds anything but a saved model;
        if no folder of that name can be made.
    SettingsError
        If it is no path, or begins with ``~``.
    """
    check_path("directory", directory)
    try:
        target = Path(os.path.realpath(directory))
        if target.is_dir():
            if not overwrite:
                raise SaveError(
                    f"{str(directory)!r} exists; pass overwrite=True (--overwrite) to replace it."
                )
            check_replaceable(target)
        elif target.exists():
            raise SaveError(f"{str(directory)!r} is a file. Choose another directory.")
        _check_writable(target)
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        raise SaveError(
            f"{str(directory)!r} cannot be made: {error.strerror}. Choose another directory."
        ) from error


def _check_writable(target: Path) -> None:
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SaveError(
            f"No folder can be made in {str(parent)!r}: it is not a writable folder. "
            "Choose another directory."
        )
    # A system may refuse what permissions allow, such as long names and read-only disks. Saving
    # begins under a name that is a little longer.
    missing = target.relative_to(parent).parts
    for name in missing:
        made = parent / f"{name}.saving-{secrets.token_hex(4)}"
        made.mkdir()
        made.rmdir()


def save_checkpoint(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
    state_dict: dict[str, Tensor] | None = None,
    shards: Sequence[Path] = (),
    run: dict[str, str] | None = None,
    account: str = "",
) -> None:
    """Write weights (safetensors), config, tokenizer, modeling file and further text files.

    What lay beside the weights that the model was loaded from comes along: processors, licences,
    and of a sentence encoder or reranker the modules behind its transformer, so that
    sentence-transformers opens the result. A `LeftBehindWarning` names what does not. The model
    then goes by the name of `directory`.

    The folder appears in one step when it is complete (`machine.atomic.replace_directory`): a
    process killed while saving leaves what was there before.

    Parameters
    ----------
    directory : path
        Made, with its parents.
    model : PreTrainedModel
        If its config has a record of layer sizes, its class is set as by `as_pruned_class`. Or a
        model of sentence-transformers around one, whose modules are saved too.
    tokenizer : PreTrainedTokenizerBase, optional
    files : mapping of str to str, optional
        Names and contents of further text files. ``README.md`` replaces the generic model card.
    overwrite : bool
        Replace the saved model that `directory` holds; refused where it holds anything else.
    state_dict : dict of str to Tensor, optional
        Weights to write, where the model itself does not hold them.
    shards : sequence of Path
        Safetensors files with the other weights, which become shards of the checkpoint.
    run : dict of str to str, optional
        All that the result depends on, by what it is; noted in the folder.
    account : str
        What was done to the model, in Markdown, for its model card.

    Raises
    ------
    SaveError
        As `check_output_directory`; if the model's class is not from transformers; if writing
        fails, for instance on a full disk. What was at `directory` is then untouched.
    """
    check_output_directory(directory, overwrite)
    whole, model = model, transformer_of(model)
    if getattr(model.config, "stat_prune", None):
        check_class(model)
    as_pruned_class(model)
    source = source_of(model)
    encoder = None if source is None else encoder_of(source, model)
    kind = encoder_kind(whole) or (encoder.kind if encoder is not None else None)
    if kind is not None:
        warn_if_opened_as_stock(model)
    card = model_card(model, Path(directory).name, kind, account)
    contents = {"README.md": card, **(files or {})}
    if state_dict is None and is_dispatched(model):
        # transformers cannot save weights that are both tied and offloaded.
        state_dict = dict(stored_tensors(model))
    try:
        check = partial(check_output_directory, directory, overwrite)
        with replace_directory(Path(directory), check, exchange=overwrite) as folder:
            if whole is model:
                model.save_pretrained(folder, state_dict=state_dict)
            else:
                _save_whole(whole, folder)
            if shards:
                join_shards(folder, shards)
            _let_weights_follow_umask(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            if source is not None:
                has_tokenizer = tokenizer is not None and text_tokenizer(tokenizer) is not None
                copy_beside(source, folder, encoder, has_tokenizer=has_tokenizer)
            for name, text in contents.items():
                (folder / name).write_text(text, encoding="utf-8")
            write_manifest(folder, run)
        name_model(model, os.fspath(directory))
    except SaveError:
        raise
    except Exception as error:  # also what transformers has against a config
        raise _not_saved(directory, error) from error


def copy_checkpoint(
    source: Path, directory: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Put what `save_checkpoint` has written to one folder into another, as it does that.

    Raises
    ------
    SaveError
        As `save_checkpoint`; and if a file of the folder is missing, or what was written to it is
        not known.
    """
    check_output_directory(directory, overwrite)
    files = written_files(source)
    if not files:
        raise SaveError(
            f"{os.fspath(source)!r} has no list of what was saved there ({MANIFEST_FILE}), which "
            "is what is copied. Nothing was changed. Save the model itself: "
            "result.load().save(...)."
        )
    try:
        check = partial(check_output_directory, directory, overwrite)
        with replace_directory(Path(directory), check, exchange=overwrite) as folder:
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, folder / name)
    except SaveError:
        raise
    except OSError as error:
        raise _not_saved(directory, error) from error


def _not_saved(directory: str | os.PathLike[str], error: Exception) -> SaveError:
    room = "Free some space" if isinstance(error, OSError | SafetensorError) else "Mend that"
    return SaveError(
        f"Could not save to {str(directory)!r}: {error}. Nothing there was changed. "
        f"{room} or choose another directory, and save again."
    )


def _save_whole(whole: Any, folder: Path) -> None:
    whole.save_pretrained(os.fspath(folder), create_model_card=False)
    for module in folder.iterdir():
        # Modules without settings, such as Normalize, need no folder.
        if module.is_dir() and not any(module.iterdir()):
            module.rmdir()


def _let_weights_follow_umask(folder: Path) -> None:
    # safetensors lets only the owner read what it writes. The folder was made under the umask,
    # which could not be asked for without setting it, for all threads.
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)
