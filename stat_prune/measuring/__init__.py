"""What is measured of the dense model: moments, effects on the output, times."""
