"""Removes organizations. Single appointments are redacted by a write, like every change."""
