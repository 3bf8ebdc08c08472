"""Dimensions inside heads beside heads and neurons."""
