"""Smaller layers in place of the dense ones."""
