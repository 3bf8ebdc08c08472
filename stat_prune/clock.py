"""Time by stage, and memory."""

from __future__ import annotations

import ctypes
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Stopwatch:
    """Wall-clock time by stage, and the process's peak memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def return_freed_memory() -> None:
    """Let the C library give the system what it holds of freed memory, where it can (glibc).

    Else tensors of some tens of megabytes that come and go leave holes, which count as resident.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        pass


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
