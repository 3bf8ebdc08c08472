"""What is exported for transformers opens with no flag and without this library."""

from __future__ import annotations

import pytest
import torch
from hand_pruned import IDS, build, cut, output, pruned
from isolation import outputs_without_stat_prune

from stat_prune.errors import UnsupportedArchitectureError
from stat_prune.exporting import export


def test_layers_of_one_size_open_in_a_process_without_the_library(tmp_path, word_tokenizer):
    model = build("Qwen3ForCausalLM")
    for layer in (0, 1):
        cut(model, layer=layer, kinds=("neurons",))
    export(model, tmp_path / "out", "transformers", tokenizer=word_tokenizer)
    assert not list((tmp_path / "out").glob("*.py"))
    assert (tmp_path / "out" / "tokenizer.json").exists()
    (tmp_path / "work").mkdir()
    folders = [(tmp_path / "out", "AutoModelForCausalLM")]
    (found,) = outputs_without_stat_prune(folders, IDS, tmp_path / "work")
    assert torch.equal(found, output(model))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertModel"])
def test_layers_of_different_sizes_are_refused_with_what_to_prune(name, tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match="uniform=True"):
        export(pruned(name), tmp_path / "out", "transformers")
    assert not list(tmp_path.iterdir())
