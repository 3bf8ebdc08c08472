"""Where the heads and neurons of a model could be, by the names and shapes of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import nn
from transformers.pytorch_utils import Conv1D

from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.families.architecture import Attention, Count, FeedForward
from stat_prune.inferring import naming
from stat_prune.model.projections import Projection, projection


@dataclass(frozen=True)
class StackGuess:
    """A list of layers, and what each could consist of.

    Attributes
    ----------
    path : str
        Below the base model.
    attentions : list of list of Attention
        For each attention layer the descriptions that it could have, the likeliest first.
    feed_forwards : list of FeedForward
    """

    path: str
    attentions: list[list[Attention]]
    feed_forwards: list[FeedForward]


def guess_stacks(base_model: nn.Module) -> list[StackGuess]:
    """The lists of layers of a model, in the order in which they are defined.

    Raises
    ------
    UnsupportedArchitectureError
        If there is none, or its layers have parts that no rule explains.
    """
    paths: list[str] = []
    for path, module in base_model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in paths)
        if isinstance(module, nn.ModuleList) and not inside and all(map(_attends, module)):
            paths.append(path)
    if not paths:
        raise UnsupportedArchitectureError(
            "no list of layers has linear layers named as queries, keys and values in each of them"
        )
    return [_guess_stack(path, base_model.get_submodule(path)) for path in paths]


def _attends(layer: nn.Module) -> bool:
    return any(naming.role_of(path) in ("query", "fused") for path in _linear_layers(layer))


def _linear_layers(layer: nn.Module) -> dict[str, Projection]:
    return {
        path: projection(layer, path)
        for path, module in layer.named_modules()
        if path and isinstance(module, (nn.Linear, Conv1D))
    }


def _guess_stack(path: str, layers: nn.Module) -> StackGuess:
    """What all layers have in common: what the first says, where the others say the same."""
    guesses = []
    for index, layer in enumerate(layers.children()):
        try:
            guesses.append(_Layer(layer).guess(path))
        except UnsupportedArchitectureError as error:
            raise UnsupportedArchitectureError(
                f"{path}.{index} ({type(layer).__name__}): {error}"
            ) from error
    first = guesses[0]
    for index, other in enumerate(guesses):
        if other.feed_forwards != first.feed_forwards or len(other.attentions) != len(
            first.attentions
        ):
            raise UnsupportedArchitectureError(f"{path}.{index} and {path}.0 have different parts")
    # Values of attributes may coincide in one layer, and tell apart in another.
    common = [
        [variant for variant in variants[0] if all(variant in other for other in variants[1:])]
        for variants in zip(*(guess.attentions for guess in guesses), strict=True)
    ]
    for variants, of_first in zip(common, first.attentions, strict=True):
        if not variants:
            raise UnsupportedArchitectureError(
                f"{path}.*.{of_first[0].module} remembers its heads otherwise in each layer"
            )
    return StackGuess(path, common, first.feed_forwards)


@dataclass
class _Layer:
    """One layer, and which of its linear layers have found their part."""

    layer: nn.Module
    linear: dict[str, Projection] = field(init=False)
    used: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.linear = _linear_layers(self.layer)

    def guess(self, path: str) -> StackGuess:
        """Its parts.

        Raises
        ------
        UnsupportedArchitectureError
            If a part is not whole, or a weight belongs to none.
        """
        makers = self._makers()
        self.used.update(path for made_by in makers.values() for path in made_by)
        attentions = [self._attention(*maker, single=len(makers) == 1) for maker in makers.items()]
        consumer = self.linear[attentions[0][0].output]
        feed_forwards = list(self._feed_forwards(width=len(consumer.weight)))
        self._check_all_used()
        return StackGuess(path, attentions, feed_forwards)

    def _makers(self) -> dict[str, tuple[str, str, str]]:
        """Queries, keys and values, by the path of the module that has them."""
        roles: dict[str, dict[naming.Role, str]] = {}
        for path in self.linear:
            role = naming.role_of(path)
            if role is not None:
                found = roles.setdefault(path.rpartition(".")[0], {})
                if role in found:
                    raise UnsupportedArchitectureError(
                        f"{path!r} and {found[role]!r} are both named as {role}"
                    )
                found[role] = path
        makers = {}
        for parent, found in roles.items():
            if found.keys() == {"fused"}:
                makers[parent] = (found["fused"],) * 3
            elif found.keys() == {"query", "key", "value"}:
                makers[parent] = (found["query"], found["key"], found["value"])
            else:
                raise UnsupportedArchitectureError(
                    f"{parent!r} has no linear layers for query, key and value each, nor one for "
                    f"all, but {sorted(found.values())}"
                )
        return makers

    def _attention(
        self, parent: str, makers: tuple[str, str, str], single: bool
    ) -> list[Attention]:
        module = self.layer.get_submodule(parent)
        size_name = naming.head_size_attribute(module)
        if size_name is None:
            raise UnsupportedArchitectureError(
                f"no attribute of {parent!r} ({type(module).__name__}) says the size of a head"
            )
        head_size = int(getattr(module, size_name))
        output = self._output(parent, makers, head_size)
        self.used.add(output)
        rows = sum(len(self.linear[path].weight) for path in set(makers))
        heads = self.linear[output].weight.shape[1] // head_size
        groups = (rows // head_size - heads) // 2
        sizes: dict[Count, int] = {
            "heads": heads,
            "groups": groups,
            "heads_per_group": heads // groups,
            "channels": heads * head_size,
        }
        widths = naming.channel_attributes(module, sizes["channels"])
        of_config = naming.config_counts(module, sizes)
        cross = not single and naming.sounds_like_cross(parent)
        return [
            Attention(
                module=parent,
                query=makers[0],
                key=makers[1],
                value=makers[2],
                output=output,
                head_size=size_name,
                counts=naming.counts(module, sizes) | followed,
                interleaved=interleaved,
                # Where the stream has the sum is not known.
                adds_to_stream=False,
                name="cross_heads" if cross else "heads",
                cross=cross,
            )
            for followed, interleaved in product(
                _without_repeats([widths, {}, widths | of_config, of_config]),
                (False, True) if len(set(makers)) == 1 else (False,),
            )
        ]

    def _output(self, parent: str, makers: tuple[str, str, str], head_size: int) -> str:
        """The linear layer that reads the heads: of a fitting width, and the closest one."""
        made = {len(self.linear[path].weight) for path in makers}
        rows = sum(len(self.linear[path].weight) for path in set(makers))

        def fits(path: str) -> bool:
            width = self.linear[path].weight.shape[1]
            groups, rest = divmod(rows - width, 2 * head_size)
            whole = width % head_size == rest == 0 and 0 < groups <= width // head_size
            separate = len(set(makers)) == 1 or width in made
            return path not in self.used and whole and separate

        candidates = [path for path in self.linear if fits(path)]
        closest = max((_closeness(parent, path) for path in candidates), default=0)
        near = [path for path in candidates if _closeness(parent, path) == closest]
        named = [path for path in near if naming.sounds_like_output(path)]
        if not near or (parent and not closest):
            raise UnsupportedArchitectureError(
                f"no linear layer near {parent!r} reads what its heads, of size {head_size}, make "
                f"({rows} rows of query, key and value)"
            )
        return (named or near)[0]

    def _feed_forwards(self, width: int) -> Iterator[FeedForward]:
        left = {path: self.linear[path].weight for path in self.linear if path not in self.used}
        downs = [
            path
            for path, weight in left.items()
            if len(weight) == width and (weight.shape[1] != width or naming.sounds_like_down(path))
        ]
        if not downs:
            self._check_all_used()
            raise UnsupportedArchitectureError(
                f"no linear layer beside the attention has the width of the stream, {width}, as "
                "that of a feed-forward network has"
            )
        for down in downs:
            neurons = left[down].shape[1]
            ups = [
                path
                for path, weight in left.items()
                if path not in downs and weight.shape[1] == width
                and len(weight) in (neurons, 2 * neurons)
            ]  # fmt: skip
            closest = max((_closeness(down, path) for path in ups), default=0)
            ups = [path for path in ups if _closeness(down, path) == closest]
            ups.sort(key=lambda path: "gate" not in path.rpartition(".")[2])
            made = sum(len(left[path]) for path in ups) // neurons
            if made not in (1, 2):
                raise UnsupportedArchitectureError(
                    f"{down!r} reads {neurons} neurons, which {ups or 'no linear layers'} make"
                )
            self.used.update([down, *ups])
            owner = down.rpartition(".")[0].replace(".", "_")
            yield FeedForward(
                inputs=tuple(ups * 2) if made > len(ups) else tuple(ups),
                output=down,
                adds_to_stream=False,
                name="neurons" if len(downs) == 1 else f"{owner}_neurons",
            )

    def _check_all_used(self) -> None:
        """Refuse a layer that computes with more than attention and feed-forward networks."""
        for path, parameter in self.layer.named_parameters():
            owner = path.rpartition(".")[0]
            module = self.layer.get_submodule(owner)
            small = parameter.ndim < 2 or "norm" in type(module).__name__.lower()
            if owner not in self.used and not small and not isinstance(module, nn.Embedding):
                raise UnsupportedArchitectureError(
                    f"{path!r} ({type(module).__name__}), of shape {tuple(parameter.shape)}, is "
                    "part of no attention and no feed-forward network that the rules know"
                )


def _closeness(first: str, second: str) -> int:
    """How many modules above two paths are the same."""
    pairs = zip(first.split("."), second.split(".")[:-1], strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count


def _without_repeats(items: Sequence[dict[str, Count]]) -> list[dict[str, Count]]:
    return [item for i, item in enumerate(items) if item not in items[:i]]
