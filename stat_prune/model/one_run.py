"""The model that a run works on: a copy of the given one's structure, or that one itself.

A run has hooks on its model, sets its mode, and puts smaller layers into it for a time. Whoever
uses the given model meanwhile, in another thread, sees nothing of that; or, where the run works on
the model itself, is refused an answer that would be neither's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from stat_prune.errors import ModelError
from stat_prune.model.dispatched import same_weights, shared_copy
from stat_prune.model.tensors.ordinary_tensors import make_ordinary

_guard = threading.Lock()

#: Modules that runs work on themselves, and the thread that does; those that are cut out go.
_taken: WeakKeyDictionary[nn.Module, threading.Thread] = WeakKeyDictionary()


@contextmanager
def model_of_run(model: PreTrainedModel, *, itself: bool = False) -> Iterator[PreTrainedModel]:
    """A copy of a model's structure (`same_weights`), or the model `itself`.

    Raises
    ------
    ModelError
        If another run works on the model itself, or on a part of it; that one goes on undisturbed.
        If it cannot be copied.
    """
    modules = WeakSet(model.modules())
    with _guard:
        _check_free(model)
        # Either refuses what cannot be copied, now rather than in the middle of the work.
        copied = shared_copy(model) if itself else same_weights(model)
        if itself:
            _taken.update(dict.fromkeys(modules, threading.current_thread()))
    if not itself:
        yield copied
        return
    # Of all modules: one on the model would be copied with it, into the result.
    hook = register_module_forward_pre_hook(_refuse_other_threads)
    try:
        make_ordinary(model)
        yield model
    finally:
        hook.remove()
        with _guard:
            for module in modules:
                _taken.pop(module, None)


def _check_free(model: nn.Module) -> None:
    other = next((_taken[module] for module in model.modules() if module in _taken), None)
    if other is not None:
        raise ModelError(
            f"{type(model).__name__} is being pruned already, by thread {other.name!r}, which "
            "works on the model itself (inplace=True, or a model of accelerate's). Wait for that "
            "run, or give each thread a model of its own (copy.deepcopy, made before either "
            "begins)."
        )


def _refuse_other_threads(module: nn.Module, _inputs: Any) -> None:
    """Raise ModelError where a thread computes with a model that another one prunes."""
    thread = _taken.get(module)
    if thread not in (None, threading.current_thread()):
        raise ModelError(
            f"{type(module).__name__} is being pruned by thread {thread.name!r}, which works on "
            "the model itself (inplace=True, or a model of accelerate's) and changes what it "
            "answers. Use it when that run has ended, or serve a copy made before."
        )
