"""How much each block may keep: what sizes cost, what they do to the output, the allocation."""
