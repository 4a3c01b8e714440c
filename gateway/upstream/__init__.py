"""Calls the service: unary calls over shared streams, and watch streams."""
