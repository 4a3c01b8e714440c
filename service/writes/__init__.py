"""Synchronous writes: group commit by organization, applied by one SQL function."""
