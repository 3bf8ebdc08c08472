"""A clock for tests of what is timed: it shows the same on every machine."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

#: What a linear layer takes beside its multiply-accumulates.
PER_CALL = 1e-6
PER_MAC = 1e-9


class LinearClock:
    """Seconds that linear layers have taken, by their sizes; nothing else takes time.

    Attributes
    ----------
    noise : float
        Each call takes up to this much more, relative.
    crowding : float
        A call takes so much more for each call since the clock was last read, relative: sums over
        parts are then too small, as they are where layers push each other out of the cache.
    reads : int
    """

    def __init__(self) -> None:
        self.now, self.reads, self.noise, self.crowding = 0.0, 0, 0.0, 0.0
        self._calls = 0
        self._random = random.Random(0)

    def __call__(self) -> float:
        self.reads += 1
        self._calls = 0
        return self.now

    def __enter__(self) -> None:
        self._hook = register_module_forward_hook(self._count)

    def __exit__(self, *_error: object) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, _args: Any, output: Tensor) -> None:
        if isinstance(module, nn.Linear | Conv1D):
            inputs = module.nx if isinstance(module, Conv1D) else module.in_features
            seconds = PER_CALL + PER_MAC * output.numel() * inputs
            seconds *= 1 + self.noise * self._random.random()
            self.now += seconds * (1 + self.crowding * self._calls)
            self._calls += 1
