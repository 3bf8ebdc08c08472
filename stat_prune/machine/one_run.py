"""One run at a time measures a model: it has hooks, and weights of probes, while it does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from stat_prune.errors import ModelError

_guard = threading.Lock()

#: Modules that runs are measuring, and the thread that does; those that are cut out go.
_measured: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


@contextmanager
def only_run(model: nn.Module) -> Iterator[None]:
    """Inside, no other run of this process has the model, or a part of it.

    Raises
    ------
    ModelError
        If one has; it goes on undisturbed.
    """
    modules = WeakSet(model.modules())
    with _guard:
        other = next((_measured[module] for module in modules if module in _measured), None)
        if other is not None:
            raise ModelError(
                f"{type(model).__name__} is being pruned already, by thread {other!r}, which has "
                "hooks on it meanwhile. Wait for that run, or give each thread a model of its own "
                "(copy.deepcopy, made before either begins)."
            )
        _measured.update(dict.fromkeys(modules, threading.current_thread().name))
    try:
        yield
    finally:
        with _guard:
            for module in modules:
                _measured.pop(module, None)
