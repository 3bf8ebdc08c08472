"""The correction once more, on the pruned network: consumers, producers and heads."""
