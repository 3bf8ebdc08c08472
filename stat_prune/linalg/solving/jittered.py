"""Cholesky factor of a Gram matrix that rounding may have made indefinite."""

from __future__ import annotations

import warnings

from jaxtyping import Float64
from torch import Tensor

from stat_prune.linalg.checks import check_gram
from stat_prune.linalg.exceptions import NumericalWarning
from stat_prune.linalg.solving.in_place import cholesky, undo_cholesky

#: Jitters relative to the mean of the diagonal: the first that is tried, and the largest that is
#: no more than rounding.
_FIRST, _ROUNDING = 1e-14, 1e-10
#: The largest that is tried, relative to the trace; rounding in float32 leaves 1e-7 of it.
_LARGEST = 1e-3
#: Of a matrix of zeros.
_LEAST = 1e-300


def jittered_cholesky(
    gram: Float64[Tensor, "m m"], *, overwrite: bool = False
) -> Float64[Tensor, "m m"]:
    """Lower triangular L with ``L Lᵀ = G + jitter I``, the jitter as small as works.

    Parameters
    ----------
    gram : Tensor of shape (m, m), float64
        Symmetric, contiguous.
    overwrite : bool
        Allow `gram` to be destroyed; on a CPU the factor takes its memory.

    Returns
    -------
    Tensor of shape (m, m), float64

    Raises
    ------
    NonFiniteError
        If an entry is NaN or infinite.
    TypeError, ValueError
        If `gram` is no square float64 matrix, or is far from positive semidefinite.

    Warns
    -----
    NumericalWarning
        If the jitter is more than rounding explains; with the figure.

    Examples
    --------
    >>> import torch
    >>> from stat_prune.linalg import jittered_cholesky
    >>> gram = torch.ones(2, 2, dtype=torch.float64)  # singular
    >>> factor = jittered_cholesky(gram)
    >>> torch.allclose(factor @ factor.T, gram)
    True
    """
    check_gram(gram)
    work = gram if overwrite else gram.clone()
    diagonal = work.diagonal().clone()
    mean, trace = float(diagonal.mean()), float(diagonal.sum())
    jitter = max(_FIRST * mean, _LEAST)
    while True:
        work.diagonal().copy_(diagonal + jitter)
        factor, found = cholesky(work)
        if found:
            break
        undo_cholesky(work, diagonal)
        jitter *= 10
        if jitter > _LARGEST * trace:
            raise ValueError(
                f"`gram` must be positive semi-definite, but has no Cholesky factor with "
                f"{jitter / 10:.1e} added to a diagonal of mean {mean:.1e}; accumulate it with "
                "Moments."
            )
    if jitter > max(_ROUNDING * mean, _LEAST):
        warnings.warn(
            f"The Gram matrix of {len(gram)} columns has a Cholesky factor only with "
            f"{jitter / mean:.1e} of the mean of its diagonal added: smaller errors are not told "
            "apart. Accumulate it in float64.",
            NumericalWarning,
            stacklevel=2,
        )
    return factor.tril_()
