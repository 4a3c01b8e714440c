"""Writes that are accepted now and applied soon, by gRPC."""
