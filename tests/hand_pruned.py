"""Tiny models cut by hand, without data: what saving and loading has to deal with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from stat_prune.checkpoints.checkpoint import as_pruned_class
from stat_prune.families import find_blocks, transformer_layers
from stat_prune.model.folded_consumer import FoldedConsumer
from stat_prune.model.projections import projection
from stat_prune.surgery.cut import apply

IDS = torch.tensor([[5, 9, 3, 17, 8, 2, 30, 11], [4, 4, 21, 39, 6, 12, 7, 1]])

ENCODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Bert": lambda: transformers.BertConfig(**ENCODER),
    "Roberta": lambda: transformers.RobertaConfig(**ENCODER),
    "Electra": lambda: transformers.ElectraConfig(**ENCODER, embedding_size=16),
    "DistilBert": lambda: transformers.DistilBertConfig(
        vocab_size=50, dim=32, n_heads=4, n_layers=2, hidden_dim=48, max_position_embeddings=40
    ),
    "GPT2": lambda: transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_head=4, n_layer=2, n_inner=48, n_positions=40
    ),
    "Llama": lambda: transformers.LlamaConfig(**DECODER),
    "Qwen2": lambda: transformers.Qwen2Config(**DECODER),
    "Qwen3": lambda: transformers.Qwen3Config(**DECODER),
}


def build(class_name: str, dtype: str = "float32") -> PreTrainedModel:
    """A tiny stock model with random weights."""
    family = max((name for name in CONFIGS if class_name.startswith(name)), key=len)
    torch.manual_seed(0)
    model_class = getattr(transformers, class_name)
    return model_class._from_config(CONFIGS[family](), dtype=getattr(torch, dtype)).eval()


def cut(
    model: PreTrainedModel,
    layer: int = 0,
    kinds: tuple[str, ...] = ("heads", "neurons"),
    bias: Tensor | None = None,
):
    """Drop units of one layer without any correction: unequal layers, in place."""
    folded = []
    for block in find_blocks(model):
        if block.layer == layer and block.kind in kinds:
            units = torch.tensor([0, 3]) if block.kind == "heads" else torch.arange(5, 38)
            weight = projection(model.base_model, block.consumer).weight.double()
            weight = weight[:, block.channels(units)]
            folded.append(FoldedConsumer(block, units, weight, bias, 0.0))
    apply(model, folded)
    return as_pruned_class(model)


def cut_to(model: PreTrainedModel, heads: Sequence[int]) -> PreTrainedModel:
    """Leave so many of the first heads of each layer, without any correction, in place."""
    folded = []
    for block, number in zip(
        (one for one in find_blocks(model) if one.kind == "heads"), heads, strict=True
    ):
        units = torch.arange(number)
        weight = projection(model.base_model, block.consumer).weight.double()
        folded.append(FoldedConsumer(block, units, weight[:, block.channels(units)], None, 0.0))
    apply(model, folded)
    return as_pruned_class(model)


def pruned(class_name: str, dtype: str = "float32") -> PreTrainedModel:
    return cut(build(class_name, dtype))


@torch.no_grad()
def output(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS)[0]


def assert_same_model(loaded: PreTrainedModel, model: PreTrainedModel) -> None:
    assert type(loaded).__name__ == type(model).__name__
    expected, actual = model.state_dict(), loaded.state_dict()
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == expected[name].dtype
        assert torch.equal(actual[name], expected[name]), name
    assert torch.equal(output(loaded), output(model))


def assert_costs_what_torch_counts(model: PreTrainedModel, ids: Tensor) -> None:
    """Blocks cost what torch counts in the layers of a model, and what their parameters are.

    Parameters
    ----------
    model : PreTrainedModel
        With one stack of layers that are nothing but blocks.
    ids : Tensor of shape (1, tokens), int64
    """
    model.set_attn_implementation("eager")  # matrix products that the counter sees
    layers = transformer_layers(model)
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        model(input_ids=ids)
    counts, blocks = counter.get_flop_counts(), find_blocks(model)
    names = {one: name for name, one in model.named_modules()}
    counted = sum(sum(counts[f"{type(model).__name__}.{names[one]}"].values()) for one in layers)
    assert sum(b.macs(b.num_units, b.num_groups, ids.shape[1]) for b in blocks) == counted / 2
    linear = [m for one in layers for m in one.modules() if isinstance(m, torch.nn.Linear)]
    parameters = sum(p.numel() for one in linear for p in one.parameters())
    assert sum(b.parameters(b.num_units, b.num_groups) for b in blocks) == parameters
