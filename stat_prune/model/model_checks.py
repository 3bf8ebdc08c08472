"""Which models can be pruned, before anything is measured of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.errors import ModelError, NonFiniteWeightsError, SettingsError
from stat_prune.model.blocks import Block
from stat_prune.model.dispatched import check_hooks, is_dispatched
from stat_prune.model.projections import projection


def check_is_model(name: str, model: Any) -> None:
    """Refuse what is no model of transformers.

    Raises
    ------
    ModelError
        Saying what to pass instead.
    """
    if isinstance(model, PreTrainedModel):
        return
    if isinstance(model, str | os.PathLike):
        raise ModelError(
            f"`{name}` must be a model, got the name {str(model)!r}. Load it, for instance by "
            "AutoModel.from_pretrained(...); prune_checkpoint takes the folder itself."
        )
    raise ModelError(
        f"`{name}` must be a transformers PreTrainedModel, got {type(model).__name__}. Wrapped "
        "models (DataParallel, torch.compile) hold it as an attribute: pass that one; of a "
        "model of PEFT pass merge_and_unload(); of a SentenceTransformer, which prune, "
        "prune_family, finish and trim_vocabulary take whole, pass model.transformers_model."
    )


def check_model(
    model: PreTrainedModel,
    device: str | torch.device | None = None,
    *,
    dispatched: bool = False,
) -> None:
    """Refuse what is no plain model in this process's memory.

    With `dispatched`, weights may be on several devices or offloaded where accelerate knows how.

    Raises
    ------
    ModelError
        Saying what to pass instead.
    SettingsError
        If a dispatched model is to be moved to `device`.
    """
    check_is_model("model", model)
    if _has_adapters(model):
        raise ModelError(
            f"{type(model).__name__} has PEFT adapters attached. Prune the model without them, or "
            "merge them first (PeftModel.merge_and_unload), and train new ones on the result."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ModelError(
            f"{type(model).__name__} is quantized. Prune the full-precision model and quantize "
            "the result."
        )
    if computed := _computed_weights(model):
        raise ModelError(
            f"{computed[0]} of {type(model).__name__} has no weight of its own ({len(computed)} "
            "such layers): it is quantized, or computes its weight from other tensors. Make it "
            "plain (torch.nn.utils.prune.remove, remove_spectral_norm, remove_parametrizations), "
            "or prune the full-precision model and quantize the result."
        )
    if is_dispatched(model):
        if not dispatched:
            raise ModelError(
                f"{type(model).__name__} has hooks of accelerate (device_map, offloading). prune "
                "and prune_family take such models, but this does not. Load it on one device, "
                "without device_map."
            )
        check_hooks(model)
        if device is not None:
            raise SettingsError(
                f"device={str(device)!r} cannot be where a model computes that accelerate has "
                "dispatched (device_map). Leave it out."
            )
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"The weights of {type(model).__name__} are not in this process's memory. Load the "
            "model with them; or, where it is larger than memory, give the folder of its "
            "checkpoint to stat_prune.prune_checkpoint."
        )
    elif odd := [n for n, one in model.named_parameters() if one.layout != torch.strided]:
        raise ModelError(
            f"{odd[0]} of {type(model).__name__} is a sparse tensor ({len(odd)} such). Make them "
            "dense (Tensor.to_dense), which is what layers without some units are, too."
        )
    elif len({parameter.device for parameter in model.parameters()}) > 1:
        raise ModelError(
            f"The parameters of {type(model).__name__} are on several devices. Load it on one, "
            "or with device_map."
        )


def check_weights_of_their_own(model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    """Refuse blocks that are read by one and the same weight: what leaves one leaves the other.

    Raises
    ------
    ModelError
        Naming two of them.
    """
    readers: dict[object, Block] = {}
    for block in blocks:
        found = projection(model.base_model, block.consumer)
        weight = found.weight
        if not weight.numel():
            continue
        where = (found.module, found.expert) if weight.is_meta else weight.data_ptr()
        other = readers.setdefault(where, block)
        if other is not block:
            raise ModelError(
                f"{other.consumer} and {block.consumer} of {type(model).__name__} share their "
                "weights. Give each layer its own (copy.deepcopy), or register a description of "
                "the family that lists a shared layer once and says how often it runs (`calls`)."
            )


def check_one_text_at_a_time(model: PreTrainedModel) -> None:
    """Refuse heads that compare several texts: the data are taken for texts by themselves.

    Raises
    ------
    SettingsError
        Naming what the transformer below can be judged by.
    """
    if type(model).__name__.endswith(("ForMultipleChoice", "DoubleHeadsModel")):
        raise SettingsError(
            f"The head of {type(model).__name__} compares several texts, but each text is read by "
            "itself here, so that the head has no output to preserve. Pass "
            'objective="hidden-states": the state of every token, which the head reads, is '
            "preserved then; rows of (choices, tokens) are read as that many texts."
        )


def check_weights_are_finite(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinities, but -Inf in a bias of the head: that masks a class.

    Parameters
    ----------
    model : PreTrainedModel
    weights : iterable of (str, Tensor)
        By name in the model; those on the meta device have no values.

    Raises
    ------
    NonFiniteWeightsError
        Naming them all.
    """
    base = model.base_model
    inner = next(f"{path}." if path else "" for path, one in model.named_modules() if one is base)
    bad = []
    for name, weight in weights:
        if weight.is_meta or not weight.is_floating_point() or _is_finite(weight):
            continue
        masks = name.endswith("bias") and not name.startswith(inner)
        wrong = weight.isnan() | (weight == torch.inf) if masks else ~weight.isfinite()
        if bool(wrong.any()):
            first = tuple(int(one) for one in wrong.nonzero()[0])
            value = float(weight[first])
            bad.append(f"{name} ({int(wrong.sum())} entries, the first at {first}: {value})")
    if bad:
        raise NonFiniteWeightsError(
            f"{len(bad)} weights of {type(model).__name__} are not finite: {'; '.join(bad)}. "
            "Download or convert the checkpoint again, or take one from before the training "
            "diverged."
        )


def beyond_range(tensors: Iterable[Tensor | None], dtype: torch.dtype) -> float | None:
    """The largest entry of the first tensor that a dtype cannot hold; None where it holds all."""
    for tensor in tensors:
        if tensor is None or tensor.is_meta or not tensor.numel():
            continue
        largest = float(torch.stack(tensor.detach().aminmax()).abs().max())
        if not largest <= torch.finfo(dtype).max:
            return largest
    return None


def _is_finite(weight: Tensor) -> bool:
    """Whether a sum is, which no entry survives that is not: no memory, at the speed of reading."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return bool(torch.isfinite(weight.sum(dtype=dtype)))


def _computed_weights(model: PreTrainedModel) -> list[str]:
    """Layers whose weight is neither parameter nor buffer: one cut from them would not be cut."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
        and "weight" not in module._parameters
        and "weight" not in module._buffers
    ]


def _has_adapters(model: PreTrainedModel) -> bool:
    """Whether layers of PEFT are in the model; they can only be where PEFT is imported."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    return peft is not None and any(isinstance(m, peft.BaseTunerLayer) for m in model.modules())
