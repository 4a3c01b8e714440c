"""Demonstrations: they send requests to the whole, and check the answers themselves."""
