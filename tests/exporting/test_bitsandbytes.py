"""Quantization by bitsandbytes while a pruned model with unequal layers is loaded."""

from __future__ import annotations

import pytest
import torch
import transformers
from hand_pruned import CONFIGS, build, output

import stat_prune

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (the extra `quantize`)")

#: Relative errors of rounding weights (and inputs) to so many bits, in two layers.
BITS = {"load_in_8bit": 0.05, "load_in_4bit": 0.3}
LARGER = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
AUTO = {"LlamaForCausalLM": "AutoModelForCausalLM", "BertModel": "AutoModel"}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", AUTO)
def test_a_folder_with_unequal_layers_opens_in_fewer_bits(tmp_path, monkeypatch, name, bits):
    family = name.removesuffix("ForCausalLM").removesuffix("Model")
    config = CONFIGS[family]()
    for field in LARGER.keys() & vars(config).keys():
        setattr(config, field, LARGER[field])
    monkeypatch.setitem(CONFIGS, family, lambda: config)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 50, (16,), generator=generator) for _ in range(40)]
    model = stat_prune.prune(
        build(name),
        [{"input_ids": one} for one in ids],
        target=stat_prune.MACs(0.6),
        # A correction of random weights is ill-conditioned, and does not survive 8 bits.
        method="id-uncorrected",
        # 4 bits are packed 64 columns at a time; the kernels for CPUs ask for whole packs.
        round_to=64,
        output_dir=tmp_path / "out",
        progress=False,
    ).model
    assert model.config.stat_prune["linear"]
    loaded = getattr(transformers, AUTO[name]).from_pretrained(
        tmp_path / "out",
        trust_remote_code=True,
        quantization_config=transformers.BitsAndBytesConfig(**{bits: True}),
        device_map="cpu",
    )
    kinds = {type(module).__name__ for module in loaded.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    expected = output(model)
    error = (output(loaded).float() - expected).norm() / expected.norm()
    assert 0 < error <= BITS[bits]
