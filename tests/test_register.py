"""A family that the user describes: the example of docs/architectures.md, as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from forks import Fork
from pebble import PebbleConfig, PebbleForCausalLM

import stat_prune
from stat_prune import MACs
from stat_prune.errors import InferredArchitectureWarning, SaveError, UnsupportedArchitectureError
from stat_prune.families import registry as families

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)

CHECK = """
ids = torch.arange(20)[None]
with torch.no_grad():
    expected, found, dense = (one(ids).logits for one in (result.model, reloaded, model))
assert type(reloaded).__name__ == "PebbleForCausalLM"
assert torch.equal(found, expected)
assert not torch.equal(expected, dense)
sizes = {block.kept for block in result.report.blocks}
assert min(sizes) < 4 and len(sizes) > 1, sizes
again = stat_prune.prune(reloaded, examples, target=stat_prune.MACs(0.8))
again.save("again")
with torch.no_grad():
    assert torch.equal(stat_prune.load("again")(ids).logits, again.model(ids).logits)
whole = stat_prune.prune(model, examples, target=stat_prune.MACs(1.0))
with torch.no_grad():
    assert (whole.model(ids).logits - dense).abs().max() < 1e-5
"""


def test_the_example_is_short_and_runs_in_a_process_of_its_own(tmp_path):
    assert len(EXAMPLE.splitlines()) < 40
    paths = [str(ROOT), str(ROOT / "tests")]
    environment = {"PYTHONPATH": os.pathsep.join(paths)}
    done = Fork(["-c", EXAMPLE + CHECK], cwd=tmp_path, environment=environment).ended()
    assert done.returncode == 0, done.stderr


@pytest.fixture
def registry(monkeypatch):
    """The registry, as it was again afterwards."""
    monkeypatch.setattr(families, "_REGISTRY", dict(families._REGISTRY))


def described(**fields) -> stat_prune.Architecture:
    mixer = dict.fromkeys(("query", "key", "value"), "mixer.qkv")
    attention = {"module": "mixer", "output": "mixer.out", "head_size": "head_size", **mixer}
    return stat_prune.Architecture(
        model_types=("pebble",),
        layers="blocks",
        attentions=(stat_prune.Attention(**attention | {"counts": {"num_heads": "heads"}}),),
        feed_forwards=(stat_prune.FeedForward(**{"inputs": ("up",), "output": "down"} | fields),),
        causal=True,
    )


def prune(**settings) -> stat_prune.PruningResult:
    examples = [{"input_ids": torch.arange(start, start + 20)} for start in range(40)]
    torch.manual_seed(0)
    model = PebbleForCausalLM(PebbleConfig())
    return stat_prune.prune(model, examples, target=MACs(0.6), progress=False, **settings)


def test_a_family_that_nobody_described_is_inferred_as_it_would_be_described(registry):
    with pytest.warns(InferredArchitectureWarning, match=r"blocks\.\*\.mixer\.out.*register_arch"):
        inferred = prune()
    stat_prune.register_architecture(described())
    assert inferred.plan == prune().plan


@pytest.mark.parametrize("fields", [{"output": "downwards"}, {"inputs": ("upwards",)}], ids=str)
def test_a_description_that_names_what_is_not_there_says_so(registry, fields):
    stat_prune.register_architecture(described(**fields))
    with pytest.raises(UnsupportedArchitectureError, match=r"PebbleBlock.*'(down|up)wards'"):
        prune()


def test_a_class_that_transformers_does_not_know_is_not_saved(registry, tmp_path):
    stat_prune.register_architecture(described())
    result = prune()
    with pytest.raises(SaveError, match=r"PebbleForCausalLM.*AutoModel\.register"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
