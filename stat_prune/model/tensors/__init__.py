"""Tensors and their products, whatever they belong to."""
