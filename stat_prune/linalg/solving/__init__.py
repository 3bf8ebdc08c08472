"""Cholesky factors and least squares from Gram matrices."""
