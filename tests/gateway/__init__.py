"""Tests of the gateway without the service."""
