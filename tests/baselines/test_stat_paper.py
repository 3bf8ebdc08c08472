"""The authors' recipe, piece by piece, against LAPACK on the activations themselves."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import qr
from toys import head_block, neuron_block, random_statistics

from stat_prune.baselines.stat_paper import SKETCH_ROWS, _counts, _gaussian_sketch, _pivots


def test_heads_are_the_pivots_of_tall_columns():
    block = head_block(5, 5, 3, 7)
    statistics, activations, _ = random_statistics(block)
    # A column for each head: its values over all tokens and positions within the head.
    tall = activations.reshape(-1, 5, 3).transpose(1, 2).reshape(-1, 5).numpy()
    upper, pivots = qr(tall, mode="economic", pivoting=True)[1:]
    found = _pivots(statistics, [block])
    assert found.order.tolist() == pivots.tolist()
    np.testing.assert_allclose(found.diagonal.numpy(), 2 * np.abs(np.diag(upper)), rtol=1e-6)


def test_neurons_are_the_pivots_of_columns_scaled_by_the_consumer():
    block = neuron_block(8, 5, bias=False)
    statistics, activations, consumer = random_statistics(block)
    scaled = activations.numpy() * np.linalg.norm(consumer.weight.detach().numpy(), axis=0)
    upper, pivots = qr(scaled, mode="economic", pivoting=True)[1:]
    found = _pivots(statistics, [block])
    assert found.order.tolist() == pivots.tolist()
    np.testing.assert_allclose(found.diagonal.numpy(), 2 * np.abs(np.diag(upper)), rtol=1e-5)


def test_one_threshold_balances_heads_against_twice_the_neurons():
    blocks = [head_block(6, 6, 2, 4), neuron_block(12, 4, bias=False)]
    pivots = [_pivots(random_statistics(block)[0], blocks) for block in blocks]

    def cost(block, units, groups):
        return block.parameters(units, groups)

    total = sum(cost(block, block.num_units, block.num_groups) for block in blocks)
    counts = _counts(pivots, [], cost, 0.6)
    spent = sum(cost(block, counts[block.name], counts[block.name]) for block in blocks)
    assert 0.6 * total - max(cost(b, 2, 2) - cost(b, 1, 1) for b in blocks) < spent <= 0.6 * total

    def imbalance(heads: int) -> float:
        left = 0.6 * total - cost(blocks[0], heads, heads)
        neurons = min(int(left // cost(blocks[1], 1, 1)), 12)
        first_cut = [
            float(one.diagonal[n]) if n < len(one.diagonal) else 0.0
            for one, n in zip(pivots, (heads, neurons), strict=True)
        ]
        return abs(first_cut[0] - 2 * first_cut[1])

    chosen = counts[blocks[0].name]
    feasible = [h for h in range(1, 7) if 0.6 * total - cost(blocks[0], h, h) >= 8]
    assert imbalance(chosen) == min(imbalance(heads) for heads in feasible)
    assert torch.equal(pivots[0].units(2), pivots[0].order[:2].sort().values)


def test_every_sequence_has_a_sketch_of_its_own_that_keeps_the_gram_matrix_on_average():
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    sketch, again = _gaussian_sketch(seed=1), _gaussian_sketch(seed=1)
    sketches = [sketch(rows) for _ in range(40)]
    assert torch.equal(sketches[0], again(rows)) and not torch.equal(sketches[0], sketches[1])
    gram = torch.stack([one.T @ one for one in sketches]).mean(0)
    exact = rows.double().T @ rows.double()
    # Each entry of a sketched Gram matrix of n rows varies by at most sqrt(2/s) of the diagonal.
    spread = (2 / SKETCH_ROWS / len(sketches)) ** 0.5 * float(exact.diagonal().max())
    assert float((gram - exact).abs().max()) < 4 * spread
