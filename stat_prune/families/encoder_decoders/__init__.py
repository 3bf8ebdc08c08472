"""Encoders with decoders."""
