"""Which columns to keep: column-pivoted QR and Cholesky, in blocks, forwards and backwards."""
