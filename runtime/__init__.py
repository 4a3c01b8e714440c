"""Shared by service and gateway: startup and shutdown, logs, settings, sockets, backoff."""
