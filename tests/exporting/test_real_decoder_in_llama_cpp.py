"""A real Llama, pruned to layers of different sizes, writes in llama.cpp what it writes here."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from forks import ROOT, Fork
from transformers import AutoModelForCausalLM, AutoTokenizer

import stat_prune

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("gguf") is None,
        reason="needs a llama.cpp (the extra `llama-cpp`)",
    ),
]


def test_the_same_tokens_and_perplexity_in_float32_and_nearly_so_in_8_bits(
    real_data: Path, tmp_path: Path
):
    folder = real_data / "models" / "llama-tinystories-656k"
    stories = json.loads((real_data / "data" / "tinystories" / "stories_1000.json").read_text())
    # Its tokenizer has no tokens for the bytes of other characters, without which llama.cpp fails.
    held_out = [story for story in stories[200:] if story.isascii()][:40]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": s}) for s in held_out))
    result = stat_prune.prune(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(),
        stories[:200],
        tokenizer=AutoTokenizer.from_pretrained(folder),
        target=stat_prune.Parameters(0.8),
        progress=False,
    )
    kept = {row.kept for row in result.report.blocks if row.kind == "neurons"}
    assert len(kept) > 1, "layers should differ in size"
    result.save(tmp_path / "pruned")
    script = ROOT / "benchmarks" / "in_llama_cpp.py"
    options = ["--output", tmp_path / "record", "--limit", "20"]
    arguments = [script, tmp_path / "pruned", tmp_path / "texts.jsonl", *options]
    done = Fork(list(map(str, arguments))).ended()
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "record" / "in_llama_cpp.json").read_text())
    assert record["f32"]["same_greedy_tokens"] == record["f32"]["prompts"] == 20
    assert abs(record["f32"]["relative_change"]) <= 1e-3
    assert abs(record["q8_0"]["relative_change"]) <= 1e-2
    assert record["f32"]["texts_tokenized"] == {"same": 20, "other": 0, "refused": 0}
