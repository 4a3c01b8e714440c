"""Calls to the service, over shared streams."""
