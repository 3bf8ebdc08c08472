"""A folder that transformers opens without any code of ours and with no flag."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stat_prune.checkpoints.checkpoint import as_pruned_class, stock_class
from stat_prune.errors import UnsupportedArchitectureError


def write_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> list[str]:
    """Write what stock classes of transformers build from the config alone.

    Parameters
    ----------
    model : PreTrainedModel
    tokenizer : PreTrainedTokenizerBase, optional
    folder : Path
        It exists, and is empty.

    Returns
    -------
    list of str
        What is to be said of it.

    Raises
    ------
    UnsupportedArchitectureError
        If its layers have sizes that no config of its family says.
    """
    if getattr(model.config, "stat_prune", None) or stock_class(model) is None:
        raise UnsupportedArchitectureError(
            f"The stock {model.__class__.__name__} makes all layers from the same few numbers in "
            "the config, and those of this model differ, or are none that its config can say. "
            "Prune it with uniform=True, and where heads are bound to the hidden size with target="
            'MACs({"neurons": 0.5}) or the like; or save it, and open it with '
            "trust_remote_code=True."
        )
    as_pruned_class(model).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return []
