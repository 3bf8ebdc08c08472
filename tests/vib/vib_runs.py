"""Short runs of `vib_finetune`, and data for them."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from tiny_models import tiny_bert
from transformers import BertForSequenceClassification, PreTrainedModel

from stat_prune.families import find_blocks
from stat_prune.pipeline.run import start_run
from stat_prune.settings.settings import Settings
from stat_prune.surgery.cut import apply
from stat_prune.vib import MODES, VIBConfig, vib_finetune
from stat_prune.vib.mask_cost import Lagrangian
from stat_prune.vib.mask_folding import fold_masks
from stat_prune.vib.mask_selection import kept_units
from stat_prune.vib.masks import make_masks, masking

#: Short, with noise that leaves traces at once.
SHORT: dict[str, Any] = {"mask_steps": 6, "batch_size": 8, "initial_log_variance": -3.0}


def short(mode: str = "full", **fields: Any) -> VIBConfig:
    steps = {} if mode == "masks" else {"finetune_steps": 3}
    return replace(MODES[mode], **SHORT | steps | fields)


def sequences(count: int = 48, *, labels: bool = False) -> list[dict[str, Any]]:
    """Random ids of 5 to 14 tokens; the label tells whether the second is large."""
    source = random.Random(0)
    rows = [
        {"input_ids": [2, *source.choices(range(5, 64), k=source.randint(3, 12)), 3]}
        for _ in range(count)
    ]
    return [row | {"labels": int(row["input_ids"][1] > 34)} if labels else row for row in rows]


def classifier(**config: Any) -> PreTrainedModel:
    return tiny_bert(BertForSequenceClassification, **config)


def finetune(model: PreTrainedModel, target: Any, data: Any = None, **settings: Any):
    """`vib_finetune`, by default on unlabelled sequences, in silence."""
    data = sequences() if data is None else data
    settings = {"mode": short(), "progress": False} | settings
    return vib_finetune(model, data, target=target, **settings)


def output(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs)[0]


def masked_and_cut(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], without: Collection[int] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in mean mode under masks that leave every other unit, and of the model cut by them.

    Of the blocks in `without` nothing is left.
    """
    blocks = find_blocks(model)
    config = VIBConfig(initial_spread=0.3, folding="means", sublayers=True)
    masks = make_masks(blocks, config, seed=0)
    for index, mask in enumerate(masks):
        mask.eval().kept[::2] = False
        if index in without:
            mask.kept[:] = False
    with masking(model, blocks, masks, Lagrangian()):
        masked = output(model, inputs)
    units = [kept_units(block, mask.kept) for block, mask in zip(blocks, masks, strict=True)]
    with start_run(model, sequences(), None, Settings(progress=False)) as run:
        plans = fold_masks(model, blocks, masks, units, config, run)
    apply(model, [plan.folded for plan in plans])
    return masked, output(model, inputs)
