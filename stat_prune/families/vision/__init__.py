"""Models that read images, and those beside them."""
