"""What is kept of rows that stream by: moments, sketches, triangular factors."""
