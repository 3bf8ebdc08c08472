"""Load saved folders in a process where stat_prune cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import stat_prune

ROOT = Path(stat_prune.__file__).parents[1]

SCRIPT = f"""
import sys
sys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import importlib.util, json
import torch, transformers
assert importlib.util.find_spec("stat_prune") is None
torch.set_num_threads(1)
batches = torch.load(sys.argv[2])
outputs = []
for (folder, auto_class, arguments), inputs in zip(json.loads(sys.argv[1]), batches, strict=True):
    model = getattr(transformers, auto_class).from_pretrained(folder, **arguments)
    with torch.no_grad():
        outputs.append(model(**inputs)[0])
assert "stat_prune" not in sys.modules
torch.save(outputs, sys.argv[3])
"""


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
    subprocess.run(
        # -I: neither the working directory nor PYTHONPATH can lead to stat_prune.
        [sys.executable, "-I", "-c", SCRIPT, json.dumps(tasks)]
        + [str(work / "inputs.pt"), str(work / "outputs.pt")],
        check=True,
        cwd=work,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules")},
    )
    return torch.load(work / "outputs.pt")
