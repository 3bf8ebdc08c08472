"""Folders of weights: written, replaced, read."""
