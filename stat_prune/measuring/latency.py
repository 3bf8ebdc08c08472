"""Time of several computations, measured so that they can be compared."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stat_prune.model.dispatched import input_device
from stat_prune.model.running import evaluating, model_inputs

#: Seconds, from any origin.
Clock = Callable[[], float]


def median_latencies(
    models: Sequence[PreTrainedModel], batch: Mapping[str, Tensor], *, rounds: int = 7
) -> list[float]:
    """Median wall-clock seconds of a forward pass, one for each model.

    Parameters
    ----------
    models : sequence of PreTrainedModel
        On the same device; they take turns as in `take_turns`.
    batch : mapping of str to Tensor
    rounds : int
    """
    with forward_turns(models, batch, time.perf_counter) as turns:
        return [statistics.median(seconds) for seconds in zip(*islice(turns, rounds), strict=True)]


@contextmanager
def forward_turns(
    models: Sequence[PreTrainedModel], batch: Mapping[str, Tensor], clock: Clock
) -> Iterator[Iterator[tuple[float, ...]]]:
    """`take_turns` of the models' forward passes on one batch, in evaluation mode."""
    device = input_device(models[0])
    runs = [partial(model, **model_inputs(model, batch, device)) for model in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model, timed=True))
        yield take_turns(runs, device, clock)


def take_turns(
    runs: Sequence[Callable[[], object]], device: torch.device, clock: Clock
) -> Iterator[tuple[float, ...]]:
    """Time runs that take turns, so that whatever else the machine does meets them all.

    Their order within a round is drawn anew each time: what ran before decides what the caches
    hold. A first round, which allocates and compiles, is not counted.

    Parameters
    ----------
    runs : sequence of callables
    device : torch.device
        Where they compute; a GPU is waited for.
    clock : callable

    Yields
    ------
    tuple of float
        Seconds of each run in one round; without end.
    """
    for run in runs:
        run()
    order, shuffled = list(range(len(runs))), random.Random(0)
    seconds = [0.0] * len(runs)
    while True:
        shuffled.shuffle(order)
        for index in order:
            seconds[index] = _seconds(runs[index], device, clock)
        yield tuple(seconds)


def undisturbed_clock(device: torch.device) -> Clock:
    """The clock on which other programs of the machine show least.

    Where one CPU thread does all the work its own time, which is the wall-clock time of an idle
    machine: waiting for a turn on a busy one adds to short runs another share than to long ones.
    """
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone and fine else time.perf_counter


def _seconds(run: Callable[[], object], device: torch.device, clock: Clock) -> float:
    _synchronize(device)
    start = clock()
    run()
    _synchronize(device)
    return clock() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
