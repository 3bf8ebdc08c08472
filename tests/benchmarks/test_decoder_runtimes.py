"""What a decoder says in other programs, beside torch."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_llama

from decoder_runtimes import compared


def test_differences_and_perplexity_are_of_all_texts():
    model = tiny_llama()
    texts = [[5, 9, 11, 7], [8, 6]]

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    def further(ids):  # by as much for every token, so that the perplexity stays
        return logits(ids) + len(ids)

    losses = [float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) for ids in texts]
    expected = torch.tensor((3 * losses[0] + losses[1]) / 4).exp()
    found = compared(further, logits, texts)
    assert found["largest_difference"] == pytest.approx(4, abs=1e-5)
    assert found["perplexity"] == pytest.approx(float(expected), rel=1e-5)
