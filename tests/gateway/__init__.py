"""Tests of the gateway by itself."""
