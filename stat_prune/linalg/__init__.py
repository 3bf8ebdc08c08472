"""Interpolative decompositions: streamed statistics, pivoting, least squares.

Depends on torch, NumPy, SciPy, scikit-learn and jaxtyping only.
"""

from stat_prune.linalg.exact_rows import ExactRows, exact_rows
from stat_prune.linalg.exceptions import NonFiniteError, NumericalWarning
from stat_prune.linalg.interpolative import interpolative_decomposition
from stat_prune.linalg.low_rank import LowRank, low_rank
from stat_prune.linalg.pivoting.backward import backward_elimination
from stat_prune.linalg.pivoting.block_pivoting import BlockPivoting, block_pivoting
from stat_prune.linalg.pivoting.cholesky import pivoted_cholesky, randomly_pivoted_cholesky
from stat_prune.linalg.pivoting.decomposition import InterpolativeDecomposition
from stat_prune.linalg.pivoting.factor import PivotedCholesky
from stat_prune.linalg.pivoting.norms import spectral_norm
from stat_prune.linalg.solving.jittered import jittered_cholesky
from stat_prune.linalg.solving.least_squares import (
    interpolation_from_gram,
    least_squares_from_moments,
)
from stat_prune.linalg.streaming.cross_moments import CrossMoments
from stat_prune.linalg.streaming.moments import Moments
from stat_prune.linalg.streaming.sketches import CountSketch, GaussianSketch, SparseSketch
from stat_prune.linalg.streaming.tsqr import TSQR

__all__ = [
    "TSQR",
    "BlockPivoting",
    "CountSketch",
    "CrossMoments",
    "ExactRows",
    "GaussianSketch",
    "InterpolativeDecomposition",
    "LowRank",
    "Moments",
    "NonFiniteError",
    "NumericalWarning",
    "PivotedCholesky",
    "SparseSketch",
    "backward_elimination",
    "block_pivoting",
    "interpolation_from_gram",
    "exact_rows",
    "interpolative_decomposition",
    "jittered_cholesky",
    "least_squares_from_moments",
    "low_rank",
    "pivoted_cholesky",
    "randomly_pivoted_cholesky",
    "spectral_norm",
]
