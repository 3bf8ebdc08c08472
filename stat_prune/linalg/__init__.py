"""Interpolative decompositions: streamed statistics, pivoting, least squares.

Depends on torch, NumPy, SciPy, scikit-learn and jaxtyping only.
"""

from .blocks import BlockPivoting, block_pivoting
from .cholesky import PivotedCholesky, pivoted_cholesky
from .errors import NumericalWarning
from .least_squares import interpolation_from_gram
from .moments import Moments

__all__ = [
    "BlockPivoting",
    "Moments",
    "NumericalWarning",
    "PivotedCholesky",
    "block_pivoting",
    "interpolation_from_gram",
    "pivoted_cholesky",
]
