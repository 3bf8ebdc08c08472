"""Linear sketches S A of a stream of rows: fewer rows, nearly the same geometry.

Row i of the stream always meets column i of the same random matrix S, which the seed alone
determines; so a shard that begins at row `first_row` of the whole stream is sketched as one pass
over the whole would sketch it, and shards add up.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from stat_prune.linalg.checks import check_count, check_number, check_seed
from stat_prune.linalg.streaming.streams import RowStream

# scikit-learn brings pandas, in all a hundred megabytes: it is imported where it is used.
if TYPE_CHECKING:
    from sklearn.random_projection import GaussianRandomProjection, SparseRandomProjection

# Rows that are converted at once, into a buffer that stays in cache, and columns of S that are
# drawn at once.
_BLOCK_ROWS = 256


Sketch = TypeVar("Sketch", bound="_Sketch")


class _Sketch(RowStream):
    """S A, and which rows have gone into it.

    Parameters
    ----------
    num_channels : int
        Number of columns m of A.
    num_rows : int
        Number of rows s of the sketch.
    seed : int
        Determines S.
    first_row : int
        Where in the whole stream this shard begins. Shards to be merged must not overlap.
    device : torch.device or str, optional
        Where the sketch lives; batches are moved there. Default: the device of the first batch.
    """

    _settings: tuple[str, ...] = ("num_channels", "num_rows", "seed")
    _tensors = ("matrix",)
    _matrix: Tensor

    def __init__(
        self,
        num_channels: int,
        num_rows: int,
        *,
        seed: int = 0,
        first_row: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.num_rows = check_count(num_rows, "num_rows")
        self.seed = check_seed(seed)
        self._next = check_seed(first_row, "first_row")
        self._ranges: list[tuple[int, int]] = []
        super().__init__(num_channels, device=device)

    def _allocate(self, device: torch.device) -> None:
        self._matrix = torch.zeros(
            self.num_rows, self.num_channels, dtype=torch.float64, device=device
        )

    @property
    def matrix(self) -> Float64[Tensor, "s m"]:
        """S A, of shape (num_rows, num_channels), float64: the state itself, no copy.

        E[(SA)ᵀ SA] = AᵀA.
        """
        self._settle()
        return self._matrix

    def _apply(self, first: int, rows: Tensor) -> None:
        """Add S[:, first:first+n] rows to the sketch."""
        raise NotImplementedError

    def _add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        self._ranges = _union(self._ranges, [(self._next, self._next + len(rows))])
        for block in rows.split(_BLOCK_ROWS):
            self._apply(self._next, block)
            self._next += len(block)
        self._seen += len(rows)

    def _combine(self: Sketch, other: Sketch) -> None:
        # Before the sum: a merge that is refused must leave no trace.
        self._ranges = _union(self._ranges, other._ranges)
        self._next = max(self._next, other._next)
        self._matrix += other._matrix.to(self._matrix.device)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state: settings, `count`, `ranges` of rows seen, and `matrix` (s, m)."""
        return super().state_dict() | {"next": self._next, "ranges": list(self._ranges)}

    @classmethod
    def from_state_dict(cls: type[Sketch], state: dict[str, Any]) -> Sketch:
        """Rebuild from what `state_dict()` returned; its tensors are taken over, not copied.

        Raises
        ------
        ValueError
            If an entry is missing.
        """
        sketch = super().from_state_dict(state)
        sketch._next = state["next"]
        sketch._ranges = [(start, stop) for start, stop in state["ranges"]]
        return sketch


def _union(mine: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint ranges of rows, sorted and joined; a ValueError if they are not disjoint."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(mine + theirs):
        if joined and start < joined[-1][1]:
            raise ValueError(
                f"rows {start} to {min(stop, joined[-1][1])} of the stream would enter the sketch "
                "twice; give each shard the `first_row` at which it begins."
            )
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class CountSketch(_Sketch):
    """CountSketch: each row is added to one random row of the sketch, with random sign.

    An update costs one pass over the batch, whatever s. Memory: s m doubles and a buffer of
    256 m, whatever the number of rows. With s >= m(m + 1)/(δ ε²) it is an ε-subspace embedding
    of the columns with probability 1 - δ [1]_ [2]_; far fewer rows serve to choose columns.

    Parameters
    ----------
    num_channels, num_rows : int
        m and s.
    seed : int
        Determines S.
    first_row : int
        Where in the whole stream this shard begins; shards to be merged must not overlap.
    device : torch.device or str, optional
        Where the sketch lives; batches are moved there. Default: the device of the first batch.

    References
    ----------
    .. [1] Clarkson and Woodruff (2013), Low rank approximation and regression in input sparsity
       time, STOC.
    .. [2] Nelson and Nguyen (2013), OSNAP: faster numerical linear algebra algorithms via sparser
       subspace embeddings, FOCS; Meng and Mahoney (2013), Low-distortion subspace embeddings in
       input-sparsity time and applications to robust linear regression, STOC.

    Examples
    --------
    Shards that say where they begin add up to the sketch of the whole:

    >>> import torch
    >>> from stat_prune.linalg import CountSketch
    >>> rows = torch.arange(12.0).reshape(6, 2)
    >>> whole = CountSketch(2, 4).update(rows)
    >>> first, second = CountSketch(2, 4).update(rows[:3]), CountSketch(2, 4, first_row=3)
    >>> bool((first.merge(second.update(rows[3:])).matrix == whole.matrix).all())
    True
    """

    _buffer: Tensor | None = None

    def _hash(self, first: int, count: int) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Row of the sketch and sign of rows first .. first + count of the stream."""
        # Philox is random access: each step of the counter yields four numbers.
        generator = np.random.Philox(key=self.seed).advance(first // 4)
        skip = first % 4
        raw = generator.random_raw(skip + count)[skip:]
        target = torch.from_numpy(((raw >> np.uint64(1)) % self.num_rows).astype(np.int64))
        sign = torch.from_numpy(1.0 - 2.0 * (raw & np.uint64(1)).astype(np.float64))
        return target.to(self._matrix.device), sign.to(self._matrix.device)

    def _apply(self, first: int, rows: Tensor) -> None:
        if self._buffer is None:
            self._buffer = self._matrix.new_empty(_BLOCK_ROWS, self.num_channels)
        target, sign = self._hash(first, len(rows))
        signed = self._buffer[: len(rows)].copy_(rows).mul_(sign[:, None])
        self._matrix.index_add_(0, target, signed)


class _ProjectionSketch(_Sketch):
    """A sketch by one of scikit-learn's random projections, drawn for 256 rows at a time."""

    _drawn: tuple[int, Tensor] | None = None

    def _draw(self, seed: int) -> Tensor:
        """A random matrix of shape (s, 256), dense or sparse."""
        raise NotImplementedError

    def _block(self, index: int) -> Tensor:
        """Columns 256 index .. 256 (index + 1) of S; the last ones drawn are kept."""
        if self._drawn is None or self._drawn[0] != index:
            seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            self._drawn = (index, self._draw(seed).to(self._matrix.device))
        return self._drawn[1]

    def _apply(self, first: int, rows: Tensor) -> None:
        while len(rows):
            offset = first % _BLOCK_ROWS
            fits = min(len(rows), _BLOCK_ROWS - offset)
            # Zeros for the rows of the block that are not there: a sparse S cannot be sliced.
            padded = self._matrix.new_zeros(_BLOCK_ROWS, self.num_channels)
            padded[offset : offset + fits].copy_(rows[:fits])
            self._matrix.addmm_(self._block(first // _BLOCK_ROWS), padded)
            first, rows = first + fits, rows[fits:]


class GaussianSketch(_ProjectionSketch):
    """Gaussian sketch: S has independent normal entries of variance 1/s.

    The best understood sketch, and the dearest: 2 s m operations a row, more than a Gram matrix
    where s > m. Memory: s m doubles and 256 (s + m), whatever the number of rows. S is drawn by
    scikit-learn's `GaussianRandomProjection`.

    Parameters
    ----------
    num_channels, num_rows, seed, first_row, device
        As of `CountSketch`.
    """

    def _draw(self, seed: int) -> Tensor:
        from sklearn.random_projection import GaussianRandomProjection

        projection = GaussianRandomProjection(n_components=self.num_rows, random_state=seed)
        return torch.from_numpy(_components(projection))


class SparseSketch(_ProjectionSketch):
    """Sparse sketch: few entries of S are not zero, and those are ±1/sqrt(s density) [1]_.

    Memory: s m doubles and 256 (s density + m), whatever the number of rows. S is drawn by
    scikit-learn's `SparseRandomProjection`.

    Parameters
    ----------
    num_channels, num_rows : int
        As of `CountSketch`.
    density : float
        Share of entries that are not zero, in (0, 1].
    seed, first_row, device
        As of `CountSketch`.

    References
    ----------
    .. [1] Li, Hastie and Church (2006), Very sparse random projections, KDD.
    """

    _settings = (*_Sketch._settings, "density")

    def __init__(
        self, num_channels: int, num_rows: int, *, density: float = 1 / 16, **options: Any
    ) -> None:
        self.density = check_number(density, "density", strict=True)
        if density > 1:
            raise ValueError(f"`density` must be at most 1, got {density}.")
        super().__init__(num_channels, num_rows, **options)

    def _draw(self, seed: int) -> Tensor:
        from sklearn.random_projection import SparseRandomProjection

        projection = SparseRandomProjection(
            n_components=self.num_rows, density=self.density, random_state=seed
        )
        entries = _components(projection).tocoo()
        return torch.sparse_coo_tensor(
            torch.from_numpy(np.stack([entries.row, entries.col])),
            torch.from_numpy(entries.data),
            entries.shape,
            check_invariants=True,
        )


def _components(projection: GaussianRandomProjection | SparseRandomProjection) -> Any:
    """The random matrix for one block of rows."""
    from sklearn.exceptions import DataDimensionalityWarning

    with warnings.catch_warnings():
        # That a block is shorter than the sketch is tall is no mistake: more blocks follow.
        warnings.simplefilter("ignore", DataDimensionalityWarning)
        return projection.fit(np.zeros((1, _BLOCK_ROWS))).components_
