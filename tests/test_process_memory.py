"""What is freed is the system's again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: One tensor behind 31 others of 4 MiB, which glibc keeps once it has seen a larger one freed.
SCRIPT = """
import sys
from contextlib import nullcontext
import torch
from stat_prune.machine.process_memory import returning_large_blocks, taken_memory

torch.ones(31 * 2**18)
cpu = torch.device("cpu")
with returning_large_blocks() if sys.argv[1] == "returning" else nullcontext():
    before = taken_memory(cpu)
    tensors = [torch.ones(2**20) for _ in range(32)]
    del tensors[:-1]
    print((taken_memory(cpu) - before) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_holes_between_tensors_are_not_resident():
    taken = {}
    for how in ("returning", "as it is"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], check=True, stdout=subprocess.PIPE, text=True
        )
        taken[how] = int(done.stdout)

    assert taken["returning"] < 16
    assert taken["as it is"] > 64
