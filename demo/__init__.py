"""Demos: they send requests to the running system and check the responses."""
