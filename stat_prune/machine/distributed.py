"""One pruning run on several processes: torch.distributed, under torchrun or accelerate launch.

Every process holds the model and reads the whole calibration set, runs its share of the sequences,
and ends with the same statistics, the same decisions and the same weights.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

from stat_prune.errors import DistributedError
from stat_prune.linalg import Moments

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_processes() -> int:
    """Processes of this run; 1 without a process group."""
    return distributed.get_world_size() if _is_shared() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if _is_shared() else 0


def _is_shared() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def launched() -> Iterator[str | None]:
    """Join the processes that torchrun has started, if it has; yields this one's device.

    Yields
    ------
    str or None
        ``"cuda:<local rank>"`` where there are GPUs, else ``"cpu"``; None if this process was not
        started by a launcher.

    Raises
    ------
    DistributedError
        If another process ended while this one waited for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_shared():
        yield None
        return
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    # Objects, such as choices and errors, go over gloo.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def is_mine(number: int) -> bool:
    """Whether the part of the work with this number is this process's."""
    return number % num_processes() == rank()


def gather(found: Mapping[int, Item]) -> list[Item]:
    """What all processes found, by the number of the part of the work; on each of them."""
    if num_processes() == 1:
        return [found[number] for number in sorted(found)]
    everything: dict[int, Item] = {}
    for part in _exchanged(_packed(found)):
        everything |= _unpacked(part)
    return [everything[number] for number in sorted(everything)]


def _packed(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    """Tensors from another process's GPU come to this one's."""

    def place(storage: Any, where: str) -> Any:
        return storage if where == "cpu" else storage.cuda(torch.cuda.current_device())

    return torch.load(io.BytesIO(data), map_location=place, weights_only=False)


def barrier(work: Callable[[], Result]) -> Result:
    """Do this process's part; where one fails, all raise its error instead of waiting for it."""
    if num_processes() == 1:
        return work()
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    _raise_first(_exchanged(error), error)
    return result  # type: ignore[return-value]


def broadcast(work: Callable[[], Result]) -> Result:
    """What the first process found, on all: for what two processes might see differently."""
    if num_processes() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = _packed(work())
        except Exception as caught:
            outcome[1] = caught
    with _others_alive():
        distributed.broadcast_object_list(outcome)
    _raise_first(outcome[1:], outcome[1])
    found: Result = _unpacked(outcome[0])
    return found


def check_same(what: str, value: object) -> None:
    """Refuse to go on where processes have read different things.

    Raises
    ------
    DistributedError
    """
    if num_processes() == 1:
        return
    values = _exchanged(value)
    different = [index for index, other in enumerate(values) if other != values[0]]
    if different:
        raise DistributedError(
            f"{what} differs between process 0 and process {different[0]}. Let every process read "
            "the same model and the same examples, in the same order."
        )


def summed(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Moments of the rows of all processes, on each; those given are used up.

    By the pairwise update of Chan, Golub and LeVeque (1983) about the common mean.
    """
    if num_processes() == 1:
        return dict(moments)
    return {name: _summed(one) for name, one in moments.items()}


def _summed(moments: Moments) -> Moments:
    count = torch.tensor(float(moments.count), dtype=torch.float64, device=moments.mean.device)
    mean, scatter = moments.mean, moments.scatter
    total, common = count.clone(), mean * count
    with _others_alive():
        distributed.all_reduce(total)
        distributed.all_reduce(common)
    common /= total.clamp(min=1.0)
    shift = mean - common
    scatter.addr_(shift, shift, alpha=float(count))
    with _others_alive():
        distributed.all_reduce(scatter)
    state = {"count": int(total), "mean": common, "scatter": scatter}
    settings = {"num_channels": moments.num_channels, "precision": moments.precision}
    return Moments.from_state_dict(settings | state)


def _exchanged(value: object) -> list[Any]:
    values: list[Any] = [None] * num_processes()
    with _others_alive():
        distributed.all_gather_object(values, value)
    return values


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DistributedError(
            f"Another process of this run ended or cannot be reached: {error} Its own message says "
            "why; start the run again."
        ) from error


def _raise_first(errors: Sequence[Exception | None], own: Exception | None) -> None:
    for index, error in enumerate(errors):
        if error is not None:
            if error is own or own is not None:
                raise own or error
            raise DistributedError(f"Process {index} failed: {error}") from error
