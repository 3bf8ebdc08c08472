"""How a budget is spread: over blocks and embeddings, from several starts, by a search."""
