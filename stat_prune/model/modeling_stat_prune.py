"""Stock transformers models whose layers have the sizes recorded in their config.

`transformers` derives the shape of every layer from a few numbers in the config, the same for
all layers. A model pruned by stat-prune has layers of different sizes; its ``config.json`` lists
them under ``stat_prune``::

    {"format": 7,
     "linear": {"encoder.layer.0.intermediate.dense": [out_features, in_features, has_bias], ...},
     "parameters": {"layers.0.mlp.experts.down_proj": [experts, out_features, in_features], ...},
     "attributes": {"encoder.layer.0.attention.self": {"num_attention_heads": 7, ...}, ...},
     "position_bias": {"encoder.layer.0.attention.attn": {"heads": [0, 1, 3]}, ...},
     "no_heads": {"layers.3.self_attn": {"output": "o_proj"}, ...},
     "embeddings": {"embeddings.word_embeddings": rank},
     "lm_head": {"lm_head": rank},
     "exact_rows": {"embeddings": number, "lm_head": number},
     "head_dims": {"encoder.layer.0.attention.self": {"query_key": 16, "value": 24},
                   "layers.1.self_attn": {"query_key": 4, "value": 6, "pairs": [[0, 3], ...]}, ...}}

with paths below the base model, so that one record serves the base class and every head class; but
that of a language model's head with weights of its own, which is below the model itself. An
attribute ``config.x`` is what the module at that path reads as ``self.config.x``. Format 1 had
neither those nor parameters, format 2 no layers without heads, format 3 no factored embeddings,
format 4 no dimensions of heads, format 5 no factored heads of language models, format 6 no exact
rows beside factors.
Asked for ``BertForMaskedLM``, this module makes a subclass of `transformers.BertForMaskedLM` with
the same name, which builds the stock model and then gives the recorded layers their sizes. Nothing
else changes: forward methods stay, but for those of attention layers that have lost all their
heads, or in which values have another size than queries and keys. Where layers share a bias of the
attention scores for every head (MPNet, T5), a hook gives each the part of its own heads. A config's
``architectures`` says ``StatPruneBertForMaskedLM``, which no program takes for a class of its own.

This file is copied into each saved folder, so that
``AutoModel.from_pretrained(folder, trust_remote_code=True)`` needs nothing but transformers.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import linear, pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

#: What this file reads; it is written in the last.
FORMATS = (1, 2, 3, 4, 5, 6, 7)

#: Goes before a class's name in ``architectures``. Servers have classes of their own for stock
#: names, and pass over the modeling file.
PREFIX = "StatPrune"

# The config says the sizes of single layers to whoever reads them there. The stock classes that are
# built before layers are resized read one size for all of them, and are warned for nothing.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(
    lambda record: "Reading global config value" not in record.getMessage()
)

_pruned_classes: dict[Any, type[transformers.PreTrainedModel]] = {}

_CACHE_LINE = 64  # bytes: where torch's own memory begins


def auto_classes(config_class: Any) -> dict[str, Any]:
    """The model class that each auto class makes of a config class, by the auto class's name.

    For `BertConfig`: ``{"AutoModel": BertModel, "AutoModelForMaskedLM": BertForMaskedLM, ...}``.
    """
    classes = {}
    for auto_name, auto_class in vars(modeling_auto).items():
        mapping = getattr(auto_class, "_model_mapping", None)
        if auto_name.startswith("AutoModel") and mapping is not None and config_class in mapping:
            model_class = mapping[config_class]
            if inspect.isclass(model_class):
                classes[auto_name] = model_class
    return classes


def auto_class_of(name: str, config_class: Any) -> str:
    """Name of the auto class that makes the model class `name`.

    Where several do (AutoModelForPreTraining too makes DistilBertForMaskedLM), the shortest name is
    the one people use.
    """
    made_by = [auto for auto, made in auto_classes(config_class).items() if made.__name__ == name]
    return min(made_by, key=len, default="AutoModel")


def stock_class(name: str, config_class: Any) -> Any:
    """The model class of that name, of transformers or registered with an auto class; or None.

    The name is one of ``architectures``, too.
    """
    name = name.removeprefix(PREFIX)
    known = {made.__name__: made for made in auto_classes(config_class).values()}
    return getattr(transformers, name, known.get(name))


class LayerConfig:
    """The model's config as one layer sees it: some sizes are its own, all else is the model's."""

    def __init__(self, config: Any, sizes: dict[str, int]) -> None:
        self.__dict__.update(stat_prune_of=config, **sizes)

    def __getattr__(self, name: str) -> Any:
        # A copy is empty at first, and is asked for special methods.
        if name == "stat_prune_of" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.stat_prune_of, name)


def set_attributes(module: Any, values: dict[str, int]) -> None:
    """Let a module remember other counts; ``config.x`` goes into a config of its own."""
    sizes = {}
    for name, value in values.items():
        prefix, _, field = name.rpartition(".")
        if prefix:
            sizes[field] = value
        else:
            setattr(module, name, value)
    if sizes:
        config = module.config
        module.config = LayerConfig(getattr(config, "stat_prune_of", config), sizes)


def empty_layer(
    stock: torch.nn.Module, out_features: int, in_features: int, has_bias: bool
) -> torch.nn.Module:
    """An uninitialised linear layer of the class, dtype and device of another.

    A `Conv1D` cannot reshape what has no channels: without inputs it becomes an `nn.Linear`.
    """
    weight: Any = stock.weight
    layer: torch.nn.Module
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        if isinstance(stock, Conv1D) and in_features:
            layer = Conv1D(out_features, in_features)
        else:
            make: Any = torch.nn.Linear if isinstance(stock, Conv1D) else type(stock)
            layer = make(in_features, out_features, bias=has_bias)
    return layer.to(weight.dtype).to_empty(device=weight.device)


def resize_layers(model: transformers.PreTrainedModel) -> None:
    """Give the layers of a stock `model` the sizes in ``model.config.stat_prune``, in place.

    What is new is freshly initialised; `from_pretrained` then fills it.
    """
    record = model.config.stat_prune
    if record["format"] not in FORMATS:
        raise ValueError(
            f"This folder has format {record['format']} of stat-prune's record of layer sizes; "
            f"this file reads formats {FORMATS}. Load it with the newest stat-prune."
        )
    base = model.base_model
    for path, (out_features, in_features, has_bias) in record["linear"].items():
        layer = empty_layer(base.get_submodule(path), out_features, in_features, has_bias)
        model._init_weights(layer)
        base.set_submodule(path, layer)
    for path, shape in record.get("parameters", {}).items():
        parent, _, name = path.rpartition(".")
        owner = base.get_submodule(parent)
        empty = getattr(owner, name).new_empty(shape)
        setattr(owner, name, torch.nn.Parameter(empty))
        model._init_weights(owner)
    for path, attributes in record["attributes"].items():
        set_attributes(base.get_submodule(path), attributes)
    for path, values in record.get("position_bias", {}).items():
        own_position_bias(base.get_submodule(path), **values)
        model._init_weights(base.get_submodule(path))
    for path, values in record.get("head_dims", {}).items():
        compute_with_own_dims(base.get_submodule(path), **values)
    for path, values in record.get("no_heads", {}).items():
        compute_without_heads(base.get_submodule(path), **values)
    exact = record.get("exact_rows", {})
    for path, rank in record.get("embeddings", {}).items():
        table = factor_embeddings(model, path, rank, exact.get("embeddings"))
        model._init_weights(table)
        model._init_weights(table.projection)
    for path, rank in record.get("lm_head", {}).items():
        if path in dict(model.named_modules()):  # not of a base model, or with another head
            head = factor_head(model, path, rank, exact.get("lm_head"))
            model._init_weights(head)
            model._init_weights(head.projection)


class ExactRows(torch.nn.Module):
    """What makes some rows of F whole rows of a table, which are kept as they are.

    These rows of F are not multiplied, but are the first numbers of the rows of the table.

    Attributes
    ----------
    weight : Parameter of shape (exact rows, hidden - rank)
        The other numbers.
    ids : Tensor of shape (exact rows,), int32
        The tokens that they are of, ascending.
    """

    def __init__(self, like: torch.Tensor, num_rows: int, width: int) -> None:
        super().__init__()
        trained = like.requires_grad
        self.weight = torch.nn.Parameter(like.new_zeros(num_rows, width), requires_grad=trained)
        # Of a model without weights buffers may have values.
        device = None if like.is_meta else like.device
        self.register_buffer("ids", torch.zeros(num_rows, dtype=torch.int32, device=device))

    def keep(self, places: torch.Tensor, ids: torch.Tensor) -> None:
        """Keep some of the rows, which are now those of other tokens."""
        self.weight.data = self.weight.data[places]
        self.ids: torch.Tensor = ids.to(self.ids)

    def rows(self, codes: torch.Tensor) -> torch.Tensor:
        """The whole rows, by F."""
        return torch.cat([codes[self.ids.long()], self.weight], dim=-1)

    def among(
        self, products: torch.Tensor, codes: torch.Tensor, asked: torch.Tensor, num_tokens: int
    ) -> torch.Tensor:
        """The rows of the tokens that are asked for, by their rows of F and what T makes of them.

        Parameters
        ----------
        products : Tensor of shape (..., hidden)
        codes : Tensor of shape (..., rank)
        asked : Tensor of shape (...), int
            The tokens.
        num_tokens : int
            Of the vocabulary.
        """
        if not len(self.ids):
            return products  # its tokens have all been trimmed
        ids, asked = self.ids.long(), asked.long().contiguous()
        if torch.compiler.is_exporting():
            # ONNX has no search, for which each token would be compared with all of these.
            order = torch.arange(len(ids), device=ids.device)
            places = ids.new_zeros(num_tokens).scatter(0, ids, order)[asked]
        else:
            places = torch.bucketize(asked, ids).clamp(max=len(ids) - 1)
        own = torch.cat([codes, self.weight[places]], dim=-1)
        return torch.where((ids[places] == asked)[..., None], own.to(products.dtype), products)


class _BesideExactRows(torch.nn.Module):
    """A form of factors, beside exact rows or not."""

    exact: ExactRows | None

    def borrow_exact(self) -> None:
        """Leave the exact rows to the embeddings that share them, and go on reading them there.

        transformers would have to tie them by name, and ties no buffers.
        """
        self.__dict__["exact"] = self._modules.pop("exact", None)


class FactoredEmbedding(torch.nn.Embedding, _BesideExactRows):
    """Embeddings F T + 1 cᵀ: looks up a row of F and multiplies it; or looks up an exact row.

    Attributes
    ----------
    weight : Parameter of shape (vocabulary, rank)
        F.
    projection : nn.Linear
        Its weight, of shape (hidden, rank), is Tᵀ; its bias is c.
    exact : ExactRows or None
    embed_scale : float
        What the stock embeddings multiply a row with.
    """

    def __init__(
        self,
        stock: Any,
        projection: torch.nn.Linear,
        weight: torch.nn.Parameter,
        exact: ExactRows | None = None,
    ) -> None:
        super().__init__(len(weight), weight.shape[1], stock.padding_idx, _weight=weight)
        self.weight = weight  # a parameter of its own has been made of it
        self.projection, self.exact = projection, exact
        self.embedding_dim = projection.out_features  # adapters go by it
        # A number, as a buffer has no value where a model is made to be loaded.
        self.embed_scale = getattr(stock, "scalar_embed_scale", getattr(stock, "embed_scale", 1.0))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The embeddings of ids."""
        codes = super().forward(input)
        embedded: torch.Tensor = self.projection(codes)
        if self.exact is not None:
            embedded = self.exact.among(embedded, codes, input, len(self.weight))
        return embedded if self.embed_scale == 1.0 else embedded * self.embed_scale


class FactoredHead(torch.nn.Linear, _BesideExactRows):
    """A linear layer whose weight is that of `FactoredEmbedding`, or of such a form of its own."""

    def __init__(
        self,
        stock: Any,
        projection: torch.nn.Linear,
        weight: torch.nn.Parameter,
        exact: ExactRows | None = None,
    ) -> None:
        with torch.device("meta"):
            super().__init__(weight.shape[1], len(weight), bias=False)
        self.weight, self.bias, self.projection = weight, stock.bias, projection
        self.exact = exact
        self.in_features = projection.out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The logits of hidden states."""
        to_rank, mean = self.projection.weight, self.projection.bias
        logits = linear(input @ to_rank, self.weight, self.bias) + (input @ mean)[..., None]
        if self.exact is None:
            return logits
        ids = self.exact.ids.long()
        rows = self.exact.rows(self.weight)
        own = linear(input, rows, None if self.bias is None else self.bias[ids])
        return logits.index_copy(-1, ids, own.to(logits.dtype))


def keep_exact_rows(model: Any, what: str, table: Any, new_ids: torch.Tensor) -> None:
    """Let exact rows of a table or head follow their tokens, in place, and the config say so.

    Parameters
    ----------
    model : PreTrainedModel
    what : {"embeddings", "lm_head"}
    table : FactoredEmbedding or FactoredHead
        Or another, of which nothing is to be done.
    new_ids : Tensor of shape (tokens,), int64
        By old id the new one; -1 of tokens that leave.
    """
    exact = getattr(table, "exact", None)
    if exact is None:
        return
    ids = new_ids.to(exact.ids.device)[exact.ids.long()]
    exact.keep(ids >= 0, ids[ids >= 0])
    record = model.config.stat_prune
    counts = {**record["exact_rows"], what: len(exact.ids)}
    model.config.stat_prune = {**record, "exact_rows": counts}


def _up_to(ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Ids of tokens of which those from a number on leave."""
    return ids.masked_fill(ids >= num_tokens, -1)


def borrowing_embeddings(model: Any) -> dict[str, Any]:
    """Embeddings of other stacks, by path, that read the factors of a model's own embeddings."""
    table = model.get_input_embeddings()
    return {
        path: one
        for path, one in model.named_modules(remove_duplicate=False)
        if isinstance(one, FactoredEmbedding) and one is not table and one.weight is table.weight
    }


def sharing_modules(model: Any, table: torch.nn.Embedding) -> dict[str, Any]:
    """The modules of a model, by path, whose weight is that of its embeddings, or will be.

    Where a model is made to be loaded, weights are tied at the end, by their names.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    found = {path for path, one in named.items() if getattr(one, "weight", None) is table.weight}
    ties = [
        {key.removesuffix(".weight") for key in pair}
        for pair in model.all_tied_weights_keys.items()
        if table.weight.is_meta and all(key.endswith(".weight") for key in pair)
    ]
    for _ in ties:  # one may lead to another
        found |= {path for pair in ties if pair & found for path in pair}
    return {path: one for path, one in named.items() if path in found}


def factor_embeddings(model: Any, path: str, rank: int, num_exact: int | None = None) -> Any:
    """Let the embeddings at a path below the base model be of two factors, uninitialised, in place.

    With `num_exact`, so many rows are kept beside them.

    So are all layers that share their weight: embeddings of other stacks, and tied heads.

    Returns
    -------
    FactoredEmbedding
    """
    table = model.base_model.get_submodule(path)
    factors = _empty_factors(table, rank, num_exact)
    sharing = sharing_modules(model, table)
    made: dict[int, Any] = {}
    for place, module in sharing.items():
        if id(module) not in made:
            kind = FactoredEmbedding if isinstance(module, torch.nn.Embedding) else FactoredHead
            made[id(module)] = kind(module, *factors).train(module.training)
            if module is not table:
                made[id(module)].borrow_exact()
        model.set_submodule(place, made[id(module)])
    first, *others = sorted(sharing, key=lambda place: sharing[place] is not table)
    # transformers ties weights by name: it writes them once, and misses no other.
    ties = {
        f"{other}.projection.{name}": f"{first}.projection.{name}"
        for other in others
        for name in ("weight", "bias")
    }
    if ties:
        model._tied_weights_keys = {**(model._tied_weights_keys or {}), **ties}
        model.all_tied_weights_keys = {**model.all_tied_weights_keys, **ties}
    return made[id(table)]


def _empty_factors(
    old: Any, rank: int, num_exact: int | None
) -> tuple[torch.nn.Linear, torch.nn.Parameter, ExactRows | None]:
    """The factor that all rows share, that of each, and exact rows; of one that may be factored."""
    like = {"dtype": old.weight.dtype, "device": old.weight.device}
    previous = getattr(old, "projection", None)
    width = old.weight.shape[1] if previous is None else previous.out_features
    trained = old.weight.requires_grad
    empty = torch.empty(len(old.weight), rank, **like)
    projection = torch.nn.utils.skip_init(torch.nn.Linear, rank, width, **like)
    projection.requires_grad_(trained)
    exact = None if num_exact is None else ExactRows(old.weight, num_exact, width - rank)
    return projection, torch.nn.Parameter(empty, requires_grad=trained), exact


def factor_head(model: Any, path: str, rank: int, num_exact: int | None = None) -> Any:
    """Let a language model's head with weights of its own be of two factors, in place.

    They are uninitialised; its bias stays.

    Returns
    -------
    FactoredHead
    """
    head = model.get_submodule(path)
    made = FactoredHead(head, *_empty_factors(head, rank, num_exact)).train(head.training)
    model.set_submodule(path, made)
    return made


def position_embedding(like: torch.Tensor, buckets: int, num_heads: int) -> torch.nn.Embedding:
    """An uninitialised embedding of relative positions, of the dtype and device of a tensor."""
    empty = like.new_empty(buckets, num_heads)
    return torch.nn.Embedding(buckets, num_heads, _weight=empty)


def own_position_bias(
    attention: Any,
    heads: list[int] | None = None,
    buckets: int | None = None,
    num_heads: int | None = None,
) -> None:
    """Let an attention layer add the position bias of its own heads to its scores.

    With `heads`, those of the bias that it is given. Else it passes over what it is given and
    computes the bias by itself: from an embedding of `buckets` positions for `num_heads` heads,
    which it gets where it has none of that shape, or as zero without one.
    """
    if buckets is not None and num_heads is not None:
        embedding = getattr(attention, "relative_attention_bias", None)
        if embedding is None or tuple(embedding.weight.shape) != (buckets, num_heads):
            attention.relative_attention_bias = position_embedding(
                attention.q.weight, buckets, num_heads
            )
        attention.has_relative_attention_bias = True
    if not hasattr(attention, "position_bias_heads"):
        attention.register_forward_pre_hook(_with_own_bias, with_kwargs=True)
    attention.position_bias_heads = heads


def _with_own_bias(
    attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an attention layer with the part of the position bias that is its own."""
    place = 2  # of the position bias where it is no keyword
    given = kwargs["position_bias"] if "position_bias" in kwargs else args[place]
    heads = attention.position_bias_heads
    own = None if heads is None or given is None else given[:, heads]
    if "position_bias" in kwargs:
        return args, {**kwargs, "position_bias": own}
    return (*args[:place], own, *args[place + 1 :]), kwargs


#: Layers of queries, keys and values, by family, and what comes after the heads where the same
#: module has it: ALBERT's; BERT's; DistilBERT's; ViT's and DINOv2's; CLIP's, OPT's, BART's and
#: Whisper's; T5's; GPT-2's, of which one makes all three.
_OWN_LAYERS = (
    ("query", "key", "value", "dense"),
    ("query", "key", "value", None),
    ("q_lin", "k_lin", "v_lin", "out_lin"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q", "k", "v", "o"),
    ("c_attn", "c_attn", "c_attn", "c_proj"),
)


def compute_with_own_dims(
    attention: Any, query_key: int, value: int, pairs: list[list[int]] | None = None
) -> None:
    """Let queries and keys of an attention layer have one size a head, values another.

    The scores are scaled as before: they are what the dense head's were, or nearly.

    Parameters
    ----------
    attention : Module
        Llama's, or one with linear layers of names that `_OWN_LAYERS` has.
    query_key, value : int
    pairs : list of list of int, optional
        Of each key/value head, the pairs of dimensions that stay of those that rotary embeddings
        turn.
    """
    attention.query_key_size = query_key
    stock = sys.modules[type(attention).__module__]
    eager, turn = stock.eager_attention_forward, getattr(stock, "apply_rotary_pos_emb", None)
    setattr(attention, size_attribute(attention), value)
    if turn is None:
        layers = next(
            names
            for names in _OWN_LAYERS
            if all(name is None or hasattr(attention, name) for name in names)
        )
        forward: Any = (
            _with_own_dims_and_bias if hasattr(attention, "compute_bias") else _with_own_dims
        )
        attention.forward = partial(forward, attention, eager, layers)
        return
    attention.rotary_pairs = pairs
    # A buffer would have no value where a model is made to be loaded.
    attention.rotary_columns = None if pairs is None else torch.tensor(pairs, device="cpu")
    attention.forward = partial(_turned_with_own_dims, attention, eager, turn)


def computes_by_function(attention: Any) -> bool:
    """Whether an attention layer's module has the function that attends as transformers' do now."""
    return hasattr(sys.modules[type(attention).__module__], "eager_attention_forward")


def turns_heads(attention: Any) -> bool:
    """Whether queries and keys of an attention layer are turned by rotary embeddings."""
    return hasattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb")


def size_attribute(attention: Any) -> str:
    """Name under which an attention layer remembers the size of its heads."""
    names = ("head_dim", "attention_head_size", "key_value_proj_dim")
    return next(name for name in names if hasattr(attention, name))


def score_scale(attention: Any) -> Any:
    """What an attention layer multiplies its scores with."""
    return attention.scale if hasattr(attention, "scale") else attention.scaling


def _by_head(attention: Any, layers: Any, hidden_states: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values of each head, by the layers of these names."""
    width = getattr(attention, size_attribute(attention))
    sizes = (attention.query_key_size, attention.query_key_size, width)
    if len(set(layers)) == 1:
        heads = attention.num_heads
        fused = getattr(attention, layers[0])(hidden_states)
        made = fused.split([heads * size for size in sizes], dim=-1)
    else:
        made = [getattr(attention, layer)(hidden_states) for layer in layers]
    return [
        one.unflatten(-1, (-1, size)).transpose(1, 2) for one, size in zip(made, sizes, strict=True)
    ]


def _queries_keys_values(
    attention: Any,
    layers: Any,
    hidden_states: torch.Tensor,
    others: torch.Tensor | None,
    past_key_values: Any,
) -> list[torch.Tensor]:
    """Those of each head, with what a cache has of keys and values.

    Keys and values of `others`, in cross-attention, stay those that a cache was given first.
    """
    *layers, _ = layers
    index = getattr(attention, "layer_idx", None)
    if others is None:
        query, key, value = _by_head(attention, layers, hidden_states)
        if past_key_values is not None:
            cache = getattr(past_key_values, "self_attention_cache", past_key_values)
            key, value = cache.update(key, value, index)
        return [query, key, value]
    queries, *of_others = layers
    sizes = attention.query_key_size, getattr(attention, size_attribute(attention))
    query = getattr(attention, queries)(hidden_states).unflatten(-1, (-1, sizes[0])).transpose(1, 2)
    known = getattr(past_key_values, "is_updated", {})
    if known.get(index):
        cached = past_key_values.cross_attention_cache.layers[index]
        return [query, cached.keys, cached.values]
    key, value = (
        getattr(attention, layer)(others).unflatten(-1, (-1, size)).transpose(1, 2)
        for layer, size in zip(of_others, sizes, strict=True)
    )
    if past_key_values is not None:
        cache = getattr(past_key_values, "cross_attention_cache", past_key_values)
        key, value = cache.update(key, value, index)
        known[index] = True
    return [query, key, value]


def _dropout(attention: Any) -> float:
    """What is dropped of the attention weights in training."""
    names = ("attention_dropout", "attn_dropout", "dropout")
    rate: Any = next((getattr(attention, name) for name in names if hasattr(attention, name)), 0.0)
    return getattr(rate, "p", rate) if attention.training else 0.0


def _attend(
    attention: Any,
    eager: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """Attention by the chosen implementation. Fused kernels take one size: zeros change nothing."""
    implementation, width = attention.config._attn_implementation, value.shape[-1]
    if implementation == "eager" and getattr(attention, "reorder_and_upcast_attn", False):
        context, weights = attention._upcast_and_reordered_attn(query, key, value, *args)
        return context.flatten(-2).contiguous(), weights
    if implementation != "eager" and key.shape[-1] != width:
        size = max(key.shape[-1], width)
        query, key, value = (pad(one, (0, size - one.shape[-1])) for one in (query, key, value))
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    scale = score_scale(attention)
    context, weights = attend(attention, query, key, value, *args, scaling=scale, **kwargs)
    return context[..., :width].flatten(-2).contiguous(), weights


def _with_own_dims(
    attention: Any,
    eager: Any,
    layers: tuple[str | None, ...],
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    key_value_states: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """The forward method of an attention layer whose queries and keys are not turned."""
    query, key, value = _queries_keys_values(
        attention, layers, hidden_states, key_value_states, past_key_values
    )
    dropout = _dropout(attention)
    context, weights = _attend(
        attention, eager, query, key, value, attention_mask, dropout=dropout, **kwargs
    )
    output = layers[-1]
    if output is None:
        return context, weights
    result = getattr(attention, output)(context)
    if hasattr(attention, "resid_dropout"):
        result = attention.resid_dropout(result)
    if hasattr(attention, "output_dropout"):  # ALBERT's adds to the stream by itself
        result = attention.LayerNorm(hidden_states + attention.output_dropout(result))
    return result, weights


def _with_own_dims_and_bias(
    attention: Any,
    eager: Any,
    layers: tuple[str, ...],
    hidden_states: torch.Tensor,
    mask: torch.Tensor | None = None,
    key_value_states: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """The forward method of T5's attention layers, which pass a bias of the scores on."""
    seen: Any = 0
    if past_key_values is not None:
        seen = past_key_values.get_seq_length(attention.layer_idx)
    # A static cache has it in a tensor of its own, and counts on.
    seen = seen.clone() if isinstance(seen, torch.Tensor) else seen
    query, key, value = _queries_keys_values(
        attention, layers, hidden_states, key_value_states, past_key_values
    )
    if position_bias is None:
        lengths = query.shape[-2], key.shape[-2]
        if attention.has_relative_attention_bias:
            position_bias = attention.compute_bias(
                *lengths, device=query.device, past_seen_tokens=seen
            )
        else:
            position_bias = query.new_zeros(1, query.shape[1], *lengths)
    context, weights = _attend(
        attention,
        eager,
        query,
        key,
        value,
        mask,
        dropout=_dropout(attention),
        position_bias=position_bias,
        **kwargs,
    )
    return getattr(attention, layers[-1])(context), position_bias, weights


def _turned_with_own_dims(
    attention: Any,
    eager: Any,
    turn: Any,
    hidden_states: torch.Tensor,
    position_embeddings: Any = None,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """The forward method of a decoder's attention layer with rotary embeddings, likewise."""
    query, key, value = _by_head(attention, ("q_proj", "k_proj", "v_proj"), hidden_states)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    cos, sin = position_embeddings
    if attention.rotary_columns is None:
        query, key = turn(query, key, cos, sin)
    else:  # each key/value head is turned by frequencies of its own
        columns = attention.rotary_columns.to(cos.device)
        columns = torch.cat([columns, columns + cos.shape[-1] // 2], dim=1)
        cos, sin = cos[..., columns].transpose(1, 2), sin[..., columns].transpose(1, 2)
        query, key = query.unflatten(1, (len(columns), -1)), key[:, :, None]
        query, key = turn(query, key, cos, sin, unsqueeze_dim=2)
        query, key = query.flatten(1, 2), key[:, :, 0]
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    window = getattr(attention.config, "sliding_window", None)
    window = getattr(attention, "sliding_window", window)
    context, weights = _attend(
        attention,
        eager,
        query,
        key,
        value,
        attention_mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        sliding_window=window,
        **kwargs,
    )
    return attention.o_proj(context), weights


def compute_without_heads(
    attention: Any, output: str | None = None, passes_bias: bool = False
) -> None:
    """Let an attention layer without heads return a constant, as stock methods cannot split none.

    Parameters
    ----------
    attention : Module
    output : str, optional
        Path, below it, of the linear layer that reads the heads. Without one, what it returns is
        their concatenation, of width zero.
    passes_bias : bool
        Whether it returns the bias of its scores, for the next layer, before the attention weights.
    """
    # An attribute hides the method, and is copied and pickled with the module.
    attention.forward = partial(_without_heads, attention, output, passes_bias)


def _without_heads(
    attention: Any,
    output: str | None,
    passes_bias: bool,
    hidden_states: torch.Tensor,
    *_args: Any,
    **kwargs: Any,
) -> tuple[Any, ...]:
    """The forward method of an attention layer without heads."""
    *batch, length, _ = hidden_states.shape
    context = hidden_states.new_zeros(*batch, length, 0)
    others = kwargs.get("key_value_states", kwargs.get("encoder_hidden_states"))
    cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
    num_keys = length if others is None else others.shape[-2]
    if cache is not None and others is None:
        # Generation asks any one layer how many tokens it has seen, and an empty tensor would say
        # none: one number a token stands for the keys.
        seen = hidden_states.new_ones(*batch, 1, length, 1)
        index = attention.layer_id if hasattr(attention, "layer_id") else attention.layer_idx
        keys, _ = getattr(cache, "self_attention_cache", cache).update(seen, seen, index)
        num_keys = keys.shape[-2]
    result = context if output is None else attention.get_submodule(output)(context)
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", "eager")
    # Attention weights are recorded where there are any, of all layers alike.
    weights = context.new_zeros(*batch, 0, length, num_keys) if implementation == "eager" else None
    return (result, None, weights) if passes_bias else (result, weights)


def align_weights(model: torch.nn.Module) -> None:
    """Move weights that lie across the bounds of cache lines, in place; their values stay.

    Weights that are mapped from a safetensors file lie where the file has them. A product of a
    matrix and a vector, as for a single token, then rounds differently than before saving.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % _CACHE_LINE:
            parameter.data = parameter.data.clone()


def keep_names(model: Any) -> None:
    """Let a model save its weights under the names they have in it.

    Of some families transformers renames weights when it loads them, and names them back when it
    saves. It does neither for classes that come with their own code; so a model that was loaded
    as a stock one, and is loaded again as a pruned one, has to be saved as it is.
    """
    model._weight_conversions = []


def name_architecture(folder: Any, name: str) -> None:
    """Let the config in a folder name the pruned class, which saving calls by its stock name."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return  # where adapters alone are saved
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [PREFIX + name]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_cache_of_one_size(config: transformers.PreTrainedConfig) -> None:
    """Refuse caches with key/value heads of one number and size where layers have their own.

    Raises
    ------
    ValueError
        They would fail in a thread of their own, with an empty answer to each request.
    """
    said = config.to_dict()
    heads = said.get("num_key_value_heads", getattr(config, "num_attention_heads", None))
    layers = (said.get("per_layer_config") or {}).values()
    uneven = any(layer.get("num_key_value_heads", heads) != heads for layer in layers)
    if uneven or (said.get("stat_prune") or {}).get("head_dims"):
        raise ValueError(
            "generate_batch and continuous batching make a cache with one number of key/value "
            "heads, of one size, for all layers, and this pruned model has its own for each. Use "
            "generate, or prune with uniform=True, or leave heads: ignore='heads'."
        )


def pruned_class(stock: Any) -> type[transformers.PreTrainedModel]:
    """The subclass of a model class, of the same name, that reads recorded layer sizes."""
    if stock not in _pruned_classes:
        _pruned_classes[stock] = _make_pruned_class(stock)
    return _pruned_classes[stock]


def _make_pruned_class(stock: Any) -> Any:

    def __init__(
        self: Any, config: transformers.PreTrainedConfig, *args: Any, **kwargs: Any
    ) -> None:
        stock.__init__(self, config, *args, **kwargs)
        if getattr(config, "stat_prune", None):
            resize_layers(self)

    # vLLM looks up the types of arguments here, which are strings in this file.
    __init__.__annotations__ = {}

    def save_pretrained(
        self: Any, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        super(made, self).save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if getattr(self.config, "stat_prune", None):
            self.config.architectures = [PREFIX + stock.__name__]
            if is_main_process:
                name_architecture(save_directory, stock.__name__)

    def _get_resized_embeddings(self: Any, old: Any, *args: Any, **kwargs: Any) -> Any:
        before = torch.arange(len(old.weight))
        resized = super(made, self)._get_resized_embeddings(old, *args, **kwargs)
        keep_exact_rows(self, "embeddings", resized, _up_to(before, len(resized.weight)))
        return resized

    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        borrowing = borrowing_embeddings(self)
        resized = super(made, self).resize_token_embeddings(*args, **kwargs)
        # The module with the exact rows has been put in the place of each of these.
        for path, one in borrowing.items():
            one.weight, one.num_embeddings = resized.weight, resized.num_embeddings
            one.padding_idx = resized.padding_idx
            self.set_submodule(path, one)
        return resized

    def _get_resized_lm_head(self: Any, old_lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        resized = super(made, self)._get_resized_lm_head(old_lm_head, *args, **kwargs)
        if resized is old_lm_head or not hasattr(old_lm_head, "projection"):
            return resized
        before = torch.arange(len(old_lm_head.weight))
        keep_exact_rows(self, "lm_head", old_lm_head, _up_to(before, len(resized.weight)))
        # A layer without the factor that all rows share has been made of the rows.
        return FactoredHead(resized, old_lm_head.projection, resized.weight, old_lm_head.exact)

    def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_cache_of_one_size(self.config)
        return super(made, self).init_continuous_batching(*args, **kwargs)

    @classmethod  # type: ignore[misc]
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = super(made, cls).from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    known = getattr(transformers, stock.__name__, None) is stock
    namespace = {
        "__module__": __name__,
        "__qualname__": stock.__name__,
        "__doc__": stock.__doc__,
        "__init__": __init__,
        "save_pretrained": save_pretrained,
        "from_pretrained": from_pretrained,
        "_get_resized_embeddings": _get_resized_embeddings,
        "_get_resized_lm_head": _get_resized_lm_head,
        "resize_token_embeddings": resize_token_embeddings,
        # With `_auto_class` set, save_pretrained copies this file beside the weights and enters the
        # class in the config's `auto_map`. It could not find a class that is not of transformers.
        "_auto_class": auto_class_of(stock.__name__, stock.config_class) if known else None,
    }
    if hasattr(stock, "init_continuous_batching"):
        namespace["init_continuous_batching"] = init_continuous_batching
    made: Any = type(stock.__name__, (stock,), namespace)
    if known:
        globals()[stock.__name__] = made  # where pickle looks for it
    return made


def __getattr__(name: str) -> type[transformers.PreTrainedModel]:
    """Make the subclass of ``transformers.<name>`` that reads recorded layer sizes."""
    stock = None if name.startswith("_") else getattr(transformers, name.removeprefix(PREFIX), None)
    if not inspect.isclass(stock) or not issubclass(stock, transformers.PreTrainedModel):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pruned_class(stock)
