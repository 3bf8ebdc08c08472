"""From measurements to what stays."""
