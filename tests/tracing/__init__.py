"""Traces, sent to a collector of the tests."""
