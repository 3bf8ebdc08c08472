"""Load saved folders in a process where stat_prune cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import stat_prune

ROOT = Path(stat_prune.__file__).parents[1]

#: Imports once what takes seconds; what is asked for is done by a fork, which has seen no other.
SERVER = f"""
import sys
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.util, json, os, traceback
import torch, transformers
from transformers import AutoModel, BertModel, LlamaForCausalLM  # loads what most models need
assert importlib.util.find_spec("stat_prune") is None
torch.set_num_threads(1)

def load(tasks, inputs, outputs):
    found = []
    for (folder, auto_class, arguments), batch in zip(tasks, torch.load(inputs), strict=True):
        model = getattr(transformers, auto_class).from_pretrained(folder, **arguments)
        with torch.no_grad():
            found.append(model(**batch)[0])
    assert "stat_prune" not in sys.modules
    torch.save(found, outputs)

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    if (child := os.fork()) == 0:
        try:
            load(*json.loads(line))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(os.waitpid(child, 0)[1], file=answers, flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    """For all tests of this process, with which it ends."""
    modules = tempfile.mkdtemp(prefix="modules_of_transformers_")
    return subprocess.Popen(
        # -I: neither the working directory nor PYTHONPATH can lead to stat_prune.
        [sys.executable, "-I", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=modules,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
    )


def outputs_without_stat_prune(
    folders: Sequence[tuple[Path, str]],
    inputs: Tensor | Sequence[dict[str, Tensor]],
    work: Path,
    *,
    remote_code: bool = True,
) -> list[Tensor]:
    """First output of the model in each folder, loaded by the auto class of that name.

    Parameters
    ----------
    folders : sequence of (Path, str)
    inputs : Tensor of shape (batch, sequence), int64, or sequence of dict of str to Tensor
        Token ids for all models, or model inputs for each.
    work : Path
        An empty folder.
    remote_code : bool
        Whether to pass ``trust_remote_code=True``.
    """
    arguments = {"trust_remote_code": True} if remote_code else {}
    tasks = [(str(folder), auto_class, arguments) for folder, auto_class in folders]
    if isinstance(inputs, Tensor):
        inputs = [{"input_ids": inputs}] * len(folders)
    torch.save(inputs, work / "inputs.pt")
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    request = [tasks, str(work / "inputs.pt"), str(work / "outputs.pt")]
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    assert server.stdout.readline().strip() == "0", "see what the process has printed"
    return torch.load(work / "outputs.pt")
