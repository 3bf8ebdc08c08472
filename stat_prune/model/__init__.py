"""A transformer as this package sees it: blocks, projections, and how it is run."""
