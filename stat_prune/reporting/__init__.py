"""What was done, for people to read."""
