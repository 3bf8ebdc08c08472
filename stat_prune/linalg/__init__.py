"""Interpolative decompositions: streamed statistics, pivoting, least squares.

Depends on torch, NumPy, SciPy, scikit-learn and jaxtyping only.
"""

from .blocks import BlockPivoting, block_pivoting
from .cholesky import pivoted_cholesky, randomly_pivoted_cholesky
from .errors import NumericalWarning
from .factor import PivotedCholesky
from .least_squares import interpolation_from_gram, least_squares_from_moments
from .moments import CrossMoments, Moments
from .sketches import CountSketch, GaussianSketch, SparseSketch
from .tsqr import TSQR

__all__ = [
    "TSQR",
    "BlockPivoting",
    "CountSketch",
    "CrossMoments",
    "GaussianSketch",
    "Moments",
    "NumericalWarning",
    "PivotedCholesky",
    "SparseSketch",
    "block_pivoting",
    "interpolation_from_gram",
    "least_squares_from_moments",
    "pivoted_cholesky",
    "randomly_pivoted_cholesky",
]
