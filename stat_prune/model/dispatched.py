"""Models that accelerate has spread over devices, offloaded, or both (``device_map``).

Hooks of accelerate bring what a module reads, and its weights where they rest elsewhere, to the
device on which it computes. Weights that a hook brings are on the meta device between forward
passes.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stat_prune.errors import ModelError
from stat_prune.model.projections import Projection, projection
from stat_prune.model.tensors.ordinary_tensors import ordinary

Device = torch.device | str | int


def is_dispatched(model: nn.Module) -> bool:
    """Whether a model has hooks of accelerate."""
    return any(_hooks_of(module) for module in model.modules())


def check_hooks(model: PreTrainedModel) -> None:
    """Refuse hooks of accelerate that do something else than a device map asks for.

    Raises
    ------
    ModelError
        Saying what to load instead.
    """
    from accelerate.hooks import AlignDevicesHook

    for path, module in model.named_modules():
        kinds = [type(one) for one in _hooks_of(module)]
        if set(kinds) - {AlignDevicesHook} or (path and len(kinds) > 1):
            raise ModelError(
                f"{path or type(model).__name__} has hooks of accelerate "
                f"({', '.join(kind.__name__ for kind in kinds)}) that do more than a device map "
                "asks for. Take them off (accelerate.hooks.remove_hook_from_module), and add them "
                "to the result."
            )
        offloaded = any(one.is_meta for one in module.parameters(recurse=False))
        if offloaded and not is_offloaded(module):
            raise ModelError(
                f"The weights of {path or type(model).__name__} are brought by no hook of its own. "
                "Load the model with device_map, without preload_module_classes."
            )
    if not _device_map(model):
        raise ModelError(
            f"{type(model).__name__} has hooks of accelerate but no hf_device_map. Pass the whole "
            "of what was dispatched, with its head."
        )


def input_device(model: nn.Module) -> torch.device:
    """Where a model's inputs are to be."""
    device = _main_device(model.modules())
    return next(model.parameters()).device if device is None else torch.device(device)


def device_of(module: nn.Module) -> torch.device | None:
    """Where the hook of a module lets it compute; None without a hook."""
    device = _main_device([module])
    return None if device is None else torch.device(device)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a hook brings a module's weights for the time of a forward pass."""
    return any(one.offload for one in _hooks_of(module))


@contextmanager
def in_memory(module: nn.Module, *, store: bool = False) -> Iterator[None]:
    """A module's weights are on the device on which it computes, and stay there.

    Parameters
    ----------
    module : nn.Module
        Its own weights, not those of modules in it. Nothing changes where they are not offloaded.
    store : bool
        Keep what is written into them.
    """
    hooks = _hooks_of(module)
    if len(hooks) != 1 or not hooks[0].offload:
        yield
        return
    from accelerate.utils import align_module_device

    (hook,) = hooks
    with align_module_device(module):
        hook.offload = False
        try:
            yield
            if store:
                for name, parameter in module.named_parameters(recurse=False):
                    hook.weights_map[name].copy_(parameter)
        finally:
            hook.offload = True


@contextmanager
def loaded(base_model: nn.Module, path: str, *, store: bool = False) -> Iterator[Projection]:
    """The linear map at a path, with its weights in memory (`in_memory`)."""
    with in_memory(projection(base_model, path).module, store=store):
        yield projection(base_model, path)


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The entries of a model's state dict, those that are offloaded too, one at a time."""
    for name, tensor in model.state_dict().items():
        owner, _, own_name = name.rpartition(".")
        yield name, _stored(model.get_submodule(owner), own_name, tensor)


def own_parameters(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Every parameter of a model once, also where offloading has undone a tie."""
    named = dict(model.named_parameters())
    tied = model.all_tied_weights_keys if is_dispatched(model) else {}
    return (parameter for name, parameter in named.items() if tied.get(name) not in named)


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that has every tensor, and every hook of accelerate, in common with the model.

    Raises
    ------
    ModelError
        If something in the model cannot be copied.
    """
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    return _copied(model, {id(one): one for one in chain(_tensors(model), hooks)})


def same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose modules, hooks, modes and config are its own and whose weights are shared.

    Parameters and buffers are new tensors in the memory of the old ones: the copy can be moved to
    another device, and its tensors replaced, without a trace in the model. Only tensors that were
    made in `torch.inference_mode` are copied.

    Raises
    ------
    ModelError
        If something in the model cannot be copied.
    """
    return _copied(model, {id(tensor): ordinary(tensor) for tensor in _tensors(model)})


def _copied(model: PreTrainedModel, known: dict[int, Any]) -> PreTrainedModel:
    """A deep copy but for what is known, by its id."""
    try:
        return copy.deepcopy(model, known | _empty_containers(model))
    except Exception as error:  # of every kind, as anything may hang on a model
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}), which "
            "pruning does many times. Take off what attributes and hooks of your own hold, such as "
            "locks, open files and connections."
        ) from error


def _empty_containers(model: nn.Module) -> dict[int, Any]:
    """New containers for the empty ones of all modules, by the ids of these.

    A module has a dozen of them for hooks, and `copy.deepcopy` spends most of its time on them.
    """
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (OrderedDict, dict, set) and not value
    }


@contextmanager
def to_cut(model: PreTrainedModel, *, inplace: bool = False) -> Iterator[PreTrainedModel]:
    """A copy of a model, or the model itself, to be made smaller inside.

    What is dispatched is dispatched in the same way afterwards, but that what was on disk rests in
    the CPU's memory. Only what is left of a model is copied.
    """
    if not is_dispatched(model):
        yield model if inplace else copy.deepcopy(model, _empty_containers(model))
        return
    placement = _Placement.of(model)
    cut = model if inplace else shared_copy(model)
    _take_off(cut)
    yield cut
    _load(cut, shared=() if inplace else _tensors(model))
    placement.dispatch(cut)


@dataclass(frozen=True)
class _Placement:
    """How a model was dispatched: arguments of `accelerate.dispatch_model`."""

    device_map: dict[str, Device]
    main_device: Device | None
    skip_keys: Any
    offload_buffers: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Placement:
        hooks = [hook for module in model.modules() for hook in _hooks_of(module)]
        places = _device_map(model).items()
        return cls(
            device_map={path: "cpu" if at == "disk" else at for path, at in places},
            main_device=_main_device(model.modules()),
            skip_keys=hooks[0].skip_keys,
            offload_buffers=any(hook.offload_buffers for hook in hooks),
        )

    def dispatch(self, model: PreTrainedModel) -> None:
        """Give hooks to a model whose weights are all in memory."""
        from accelerate import dispatch_model

        at_rest = {n: one for n, one in model.state_dict().items() if one.device.type == "cpu"}
        dispatch_model(
            model,
            self.device_map,
            main_device=self.main_device,
            state_dict=at_rest,
            skip_keys=self.skip_keys,
            offload_buffers=self.offload_buffers,
            force_hooks=True,
        )


def _take_off(model: nn.Module) -> None:
    """Let modules compute without their hooks, which still know what is offloaded."""
    from accelerate.hooks import remove_hook_from_module

    hooks = {m: m.__dict__.pop("_hf_hook") for m in model.modules() if _hooks_of(m)}
    remove_hook_from_module(model, recurse=True)  # would load what is offloaded, with hooks
    for module, hook in hooks.items():
        module._hf_hook = hook


def _load(model: PreTrainedModel, shared: Iterable[Tensor]) -> None:
    """Bring all that is offloaded into memory, copy what is shared, forget hooks; ties stay."""
    to_copy = {id(tensor) for tensor in shared}
    memo: dict[int, Any] = {}
    places: list[tuple[nn.Module, dict[str, Any], str, Tensor]] = [
        (module, tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    for module, tensors, name, tensor in places:
        if tensor.is_meta and id(tensor) not in memo:
            found = _stored(module, name, tensor).detach().cpu()
            found = found.clone() if to_copy else found
            if isinstance(tensor, nn.Parameter):
                found = nn.Parameter(found, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = found
        if tensor.is_meta or id(tensor) in to_copy:
            tensors[name] = copy.deepcopy(tensor, memo)
    for module in model.modules():
        module.__dict__.pop("_hf_hook", None)
    if any(tensor.is_meta for *_, tensor in places):
        model.tie_weights(recompute_mapping=False)  # offloading undoes it


def _stored(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a module, from where it rests."""
    if not tensor.is_meta:
        return tensor
    (hook,) = (one for one in _hooks_of(module) if one.offload)
    stored: Tensor = hook.weights_map[name]
    return stored


def _device_map(model: nn.Module) -> dict[str, Device]:
    """Where weights rest; empty where that is not known."""
    weights = (m for m in model.modules() if any(True for _ in m.parameters(recurse=False)))
    if all(map(is_offloaded, weights)):
        return {"": "cpu"}  # accelerate.cpu_offload and disk_offload leave no map
    return getattr(model, "hf_device_map", {})


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _main_device(modules: Iterable[nn.Module]) -> Device | None:
    """Where the first module with a device computes, as its hook says it; None without hooks."""
    hooks = chain.from_iterable(map(_hooks_of, modules))
    return next((one.execution_device for one in hooks if one.execution_device is not None), None)


def _hooks_of(module: nn.Module) -> list[Any]:
    """A module's hooks of accelerate; none where accelerate has not been imported."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
