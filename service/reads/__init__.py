"""Reads, from the primary or replicas, and the live stream of changes."""
