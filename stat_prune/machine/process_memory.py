"""What this process takes of memory, and how the C library holds on to what was freed."""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

#: Bytes from which a block is mapped by itself, so that it is given back when it is freed: where
#: glibc begins, and what it comes to with the first large tensor that is freed.
_MAPPED, _MOST_MAPPED = 2**17, 2**25

#: How many free bytes at the end of the heap may stay there.
_KEPT = 2**23

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@contextmanager
def returning_large_blocks() -> Iterator[None]:
    """Inside, the memory of large tensors is the system's as soon as they are freed (glibc).

    By itself glibc soon keeps blocks below 32 MiB for later. Where tensors of many sizes come and
    go, holes between them then add a hundred megabytes and more to the peak. Mapping them anew
    takes a few percent of the time.
    """
    _tell_allocator("mallopt", _M_MMAP_THRESHOLD, _MAPPED)
    _tell_allocator("mallopt", _M_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        _tell_allocator("mallopt", _M_MMAP_THRESHOLD, _MOST_MAPPED)


def return_freed_memory() -> None:
    """Give the system what was freed and the C library has kept (glibc), once and for all of it."""
    _tell_allocator("malloc_trim", 0)


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU allocator's peak on a GPU, else the process's peak resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") or _own_maximum()


def taken_memory(device: torch.device) -> int:
    """Bytes that are taken now: by the GPU's allocator, or resident."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS") or _own_maximum()


def _tell_allocator(function: str, *arguments: int) -> None:
    """Call a function of malloc.h, where the C library has it (glibc)."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        getattr(ctypes.CDLL(None), function)(*arguments)


def _status(field: str) -> int | None:
    """What Linux says of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), None)


def _own_maximum() -> int:
    """On other systems. On Linux it would count what a large parent process had taken."""
    # macOS reports bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
