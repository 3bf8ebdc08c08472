"""Interpolative decompositions: streamed statistics, pivoting, least squares.

Depends on torch, NumPy, SciPy, scikit-learn and jaxtyping only.
"""

from .backward import backward_elimination
from .block_pivoting import BlockPivoting, block_pivoting
from .cholesky import pivoted_cholesky, randomly_pivoted_cholesky
from .cross_moments import CrossMoments
from .decomposition import InterpolativeDecomposition
from .exact_rows import ExactRows, exact_rows
from .exceptions import NonFiniteError, NumericalWarning
from .factor import PivotedCholesky
from .interpolative import interpolative_decomposition
from .jittered import jittered_cholesky
from .least_squares import interpolation_from_gram, least_squares_from_moments
from .low_rank import LowRank, low_rank
from .moments import Moments
from .norms import spectral_norm
from .sketches import CountSketch, GaussianSketch, SparseSketch
from .tsqr import TSQR

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
